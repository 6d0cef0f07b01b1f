"""Pictures that break their decoder: whatever Pillow raises, one picture is broken and the site is decoded."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from concilia_client_node import pictures
from concilia_client_node.dataset import Picture, Site
from concilia_client_node.pictures import PictureUnreadable, decode, decode_site
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def head(width: int, height: int) -> bytes:
    return PNG + chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0")


BROKEN = {
    "nothing": b"",
    "head alone": PNG,
    "data that end": head(8, 8) + chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b""),
    "more pixels than are decoded": head(10_000, 10_000) + chunk(b"IDAT", b""),
    "more pixels than Pillow takes": head(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", b""),
    "more rows than are decoded": head(5, 70_000)
    + chunk(b"IDAT", zlib.compress(bytes(16 * 70_000)))
    + chunk(b"IEND", b""),
    "a GIF": b"GIF89a" + bytes(40),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_decoded_is_unreadable(kind: str, tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(BROKEN[kind])
    with pytest.raises(PictureUnreadable):
        decode(tmp_path / "p.jpg", 8)
    with pytest.raises(PictureUnreadable):
        decode(tmp_path / "absent.jpg", 8)


@pytest.mark.parametrize("error", [IndexError, KeyError, TypeError, EOFError, OSError, zlib.error, SyntaxError])
def test_whatever_a_decoder_raises_breaks_one_picture_alone(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8), "white").save(tmp_path / f"{name}.png")
    rows = tuple(Picture(name, name, 0, None, tmp_path / f"{name}.png") for name in ("a", "b", "c"))
    true_open = Image.open

    def opened(path: Path, **options: object) -> Image.Image:
        if path.stem == "b":
            raise error("broken")
        return true_open(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures.Image, "open", opened)
    decoded = decode_site(Site("s", "drawn", rows, (), 0), 8, tmp_path / "scratch", 2)
    assert decoded.broken == (rows[1],)
    assert decoded.training.lesions == ("a", "c")


def test_a_machine_without_memory_is_no_broken_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures.Image, "open", opened)
    with pytest.raises(MemoryError):
        decode(tmp_path / "a.png", 8)


def test_a_palettes_transparency_is_dropped_without_a_word(tmp_path: Path) -> None:
    """Warnings are errors here; the model service resolves it in the same way."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "p.png", transparency=b"\xff\x00")
    assert decode(tmp_path / "p.png", 4)[:, 0, 0].tolist() == [200, 100, 50]

"""MedMNIST's arrays: every layout it has, and whatever else somebody may call an .npz file."""

from __future__ import annotations

import io
import math
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_client_node import archive, dataset, drawn_arrays
from concilia_client_node.errors import DatasetError
from concilia_client_node.local_data import LocalData
from concilia_client_node.pictures import decode_site
from concilia_client_node.split import SiteChoice
from concilia_kit.classification import Classification, Disease
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

PARTS = ("train", "val", "test")
THREE = Classification(name="three", classes=tuple(Disease(code=code, name=code) for code in ("a", "b", "c")))


def arrays(side: int = 28, colour: bool = False, counts: tuple[int, int, int] = (12, 3, 6)) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for part, count in zip(PARTS, counts, strict=True):
        shape = (count, side, side, 3) if colour else (count, side, side)
        made[f"{part}_images"] = rng.integers(0, 255, shape, np.uint8)
        made[f"{part}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    return made


def folder_of(tmp_path: Path, made: dict[str, Any], save: Callable[..., None] = np.savez_compressed) -> Path:
    save(tmp_path / "setmnist.npz", **made)
    return tmp_path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels", [np.uint8, np.int64, ">i4"])
@pytest.mark.parametrize(
    ("side", "colour"), [(28, False), (28, True), (64, False), (64, True), (128, True), (224, False)]
)
def test_every_layout_of_medmnist_is_read(tmp_path: Path, save: Any, labels: Any, side: int, colour: bool) -> None:
    made = arrays(side, colour)
    made |= {f"{part}_labels": made[f"{part}_labels"].astype(labels) for part in PARTS}
    folder = archive.read(folder_of(tmp_path, made, save), THREE)
    assert (folder.source, len(folder.pictures)) == ("three", 21)
    assert folder.classification == THREE
    site = dataset.choose(folder, SiteChoice.parse("all"), 0)
    assert (len(site.training), len(site.held_out), site.overlapping_lesions()) == (12, 9, 0)
    assert dataset.per_class(site.training, 3) == (4, 4, 4)
    decoded = decode_site(site, 32, tmp_path / "scratch", 1)
    assert not decoded.broken
    assert decoded.held_out.classification == THREE
    for pictures, own in ((decoded.training, site.training), (decoded.held_out, site.held_out)):
        for position, picture in enumerate(own):
            assert picture.place is not None
            pixels = made[picture.place[0]][picture.place[1]]
            wanted = Image.fromarray(pixels).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
            assert (pictures.images[position].numpy() == np.asarray(wanted).transpose(2, 0, 1)).all()
            assert pictures.labels[position] == int(made[f"{picture.place[0][:-7]}_labels"][picture.place[1], 0])


def test_what_a_sets_makers_held_out_is_held_out_at_every_site(tmp_path: Path) -> None:
    folder = archive.read(folder_of(tmp_path, arrays(counts=(120, 30, 60))), THREE)
    sites = [dataset.choose(folder, SiteChoice.parse(f"iid:{index}/3"), 5) for index in range(3)]
    assert sum(len(site.training) for site in sites) == 120
    assert all(picture.image.startswith("train:") for site in sites for picture in site.training)
    assert all(not picture.image.startswith("train:") for site in sites for picture in site.held_out)
    assert min(len(site.held_out) for site in sites) > 10


def test_a_site_registers_its_classification_and_a_count_a_class(tmp_path: Path) -> None:
    site = dataset.choose(archive.read(folder_of(tmp_path, arrays()), THREE), SiteChoice.parse("all"), 0)
    told = LocalData(site, "here", tmp_path / "scratch", 1, 0.0).registration()
    assert (told.classification, told.training_images, told.held_out_images) == (THREE, (4, 4, 4), (3, 3, 3))


def refused(tmp_path: Path, words: str) -> str:
    with pytest.raises(DatasetError, match=words) as error:
        archive.read(tmp_path, THREE)
    assert "\n" not in str(error.value)
    return str(error.value)


CHANGES: list[tuple[str, Any, str]] = [
    ("train_images", np.zeros((12, 28, 28), np.float32), "whole numbers"),
    ("train_images", np.zeros((12, 28, 28), np.uint16), "uint8"),
    ("train_images", np.zeros((12, 28, 28, 28), np.uint8), "train_images must be uint8"),  # MedMNIST's 3D sets
    ("train_images", np.zeros((12, 28, 28, 4), np.uint8), "train_images must be uint8"),
    ("train_images", np.zeros((12, 28, 64), np.uint8), "train_images must be uint8"),
    ("train_images", np.zeros((12, 30, 30), np.uint8), r"of \[28, 64, 128, 224\]"),
    ("train_images", np.uint8(4), "rows"),
    ("test_images", np.random.default_rng(0).integers(0, 255, (6, 64, 64), np.uint8), "several sizes"),
    (
        "train_images",
        np.asfortranarray(np.random.default_rng(0).integers(0, 255, (12, 28, 28), np.uint8)),
        "row by row",
    ),
    ("train_labels", np.zeros((12, 14), np.uint8), "one class a picture"),  # ChestMNIST
    ("train_labels", np.zeros(12, np.uint8), "one class a picture"),
    ("train_labels", np.zeros((11, 1), np.uint8), "one class a picture"),
    ("train_labels", np.full((12, 1), 3, np.uint8), "labels from 3 to 3; the classification has 3"),
    ("train_labels", np.full((12, 1), -1, np.int64), "labels from -1"),
    ("train_labels", np.zeros((12, 1), np.float64), "whole numbers"),
]


@pytest.mark.parametrize(("name", "array", "words"), CHANGES)
def test_arrays_that_are_not_medmnists_are_refused_by_their_headers(
    tmp_path: Path, name: str, array: Any, words: str
) -> None:
    made = arrays()
    folder_of(tmp_path, made | {name: array}, np.savez)
    refused(tmp_path, words)


def test_a_folder_has_one_archive(tmp_path: Path) -> None:
    refused(tmp_path, "0 .npz files")
    refused(tmp_path / "nowhere", "no folder")
    folder_of(tmp_path, arrays())
    (tmp_path / "other.npz").write_bytes(b"")
    refused(tmp_path, "2 .npz files")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_an_array_that_is_missing_is_named(tmp_path: Path, part: str, kind: str) -> None:
    made = arrays()
    del made[f"{part}_{kind}"]
    folder_of(tmp_path, made)
    refused(tmp_path, f"0 arrays '{part}_{kind}'")


def test_an_empty_set_is_refused_and_an_empty_part_is_not(tmp_path: Path) -> None:
    folder_of(tmp_path, arrays(counts=(0, 0, 0)))
    refused(tmp_path, "no pictures")
    folder_of(tmp_path, arrays(counts=(4, 0, 3)))
    assert len(archive.read(tmp_path, THREE).pictures) == 7


# -------------------------------------------------------------------------------------------------- hostile archives


class Trap:
    """Says so where it is unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return (_spring, ())


def _spring() -> str:
    Trap.sprung = True
    return "sprung"


def member(shape: tuple[int, ...], content: bytes, descr: str = "|u1", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file of any words."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header + content


def with_member(tmp_path: Path, name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A good archive but for one array."""
    made = arrays()
    path = tmp_path / "setmnist.npz"
    with zipfile.ZipFile(path, "w", compression) as target:
        for other, array in made.items():
            out = io.BytesIO()
            np.save(out, array)
            target.writestr(f"{other}.npy", content if other == name else out.getvalue())
    return path


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    with_member(tmp_path, "train_images", member((12,), pickle.dumps([Trap()]), "|O"))
    refused(tmp_path, "whole numbers")
    with_member(tmp_path, "train_images", pickle.dumps([Trap()]))
    refused(tmp_path, "cannot be read")
    assert not Trap.sprung


def test_a_bomb_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 60_000  # 47 MB of zeros, in 46 kB
    path = with_member(tmp_path, "train_images", member((rows, 28, 28), bytes(rows * 28 * 28)))
    assert path.stat().st_size < 100_000
    read: list[int] = []
    original = zipfile.ZipExtFile.read

    def noted(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        read.append(n or 0)
        return original(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", noted)
    assert "no pictures are packed so small" in refused(tmp_path, "says that it has 47")
    assert not read


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2**62, 28, 28), "at most"),
        ((10**400, 28, 28), "at most"),
        ((13, 28, 28), "another size"),
        ((11, 28, 28), "another size"),
        ((-12, -28, 28), "at most"),
        ((2**20, 2**30, 2**30), "another size"),
        ((), "at most"),
    ],
)
def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    noise = random.Random(0).randbytes(12 * 28 * 28)
    with_member(tmp_path, "train_images", member(shape, noise))
    refused(tmp_path, words)


@pytest.mark.parametrize("version", [b"\x02\x00", b"\x03\x00", b"\x01\x01", b"\xff\xff"])
def test_other_versions_of_the_format_are_refused(tmp_path: Path, version: bytes) -> None:
    with_member(tmp_path, "train_images", member((12, 28, 28), bytes(9408), version=version))
    refused(tmp_path, "version")


@pytest.mark.parametrize(
    "header",
    [b"(" * 900, b"-" * 900 + b"1", b" " * 60_000, b"{'shape': __import__('os').abort()}", b"\xff" * 64, b"[]", b""],
)
def test_headers_are_read_as_words_and_never_run(tmp_path: Path, header: bytes) -> None:
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + random.Random(0).randbytes(9408)
    with_member(tmp_path, "train_images", content)
    refused(tmp_path, "no header that can be read")


def test_other_packing_than_numpys_is_refused(tmp_path: Path) -> None:
    with_member(tmp_path, "train_images", member((12, 28, 28), random.Random(0).randbytes(9408)), zipfile.ZIP_LZMA)
    refused(tmp_path, "packed in a way")


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = folder_of(tmp_path, arrays()) / "setmnist.npz"
    with zipfile.ZipFile(path, "a") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr("train_images.npy", b"")
    refused(tmp_path, "2 arrays")


def test_an_archive_of_thousands_of_members_is_refused(tmp_path: Path) -> None:
    path = folder_of(tmp_path, arrays()) / "setmnist.npz"
    with zipfile.ZipFile(path, "a") as target:
        for number in range(archive.MOST_MEMBERS):
            target.writestr(f"{number}.npy", b"")
    refused(tmp_path, "must have one")


def test_a_changed_byte_among_the_pictures_makes_them_all_unreadable(tmp_path: Path) -> None:
    folder_of(tmp_path, arrays(), np.savez)
    site = dataset.choose(archive.read(tmp_path, THREE), SiteChoice.parse("all"), 0)
    path = tmp_path / "setmnist.npz"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        content[opened.getinfo("train_images.npy").header_offset + 3000] ^= 1
    path.write_bytes(content)
    decoded = decode_site(site, 32, tmp_path / "scratch", 1)
    assert len(decoded.broken) == 12
    assert (len(decoded.training), len(decoded.held_out)) == (0, 9)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_checksum_that_does_not_fit_makes_them_all_unreadable(tmp_path: Path, save: Any) -> None:
    """It is known at the array's end alone."""
    path = folder_of(tmp_path, arrays(), save) / "setmnist.npz"
    content = bytearray(path.read_bytes())
    entry = content.index(b"train_images.npy", content.index(b"PK\x01\x02")) - 46  # in the archive's directory
    content[entry + 16] ^= 1
    path.write_bytes(content)
    site = dataset.choose(archive.read(tmp_path, THREE), SiteChoice.parse("all"), 0)
    assert len(decode_site(site, 32, tmp_path / "scratch", 1).broken) == 12


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_bytes_change_a_folder_comes_of_it_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = folder_of(tmp_path, arrays(), np.savez if data.draw(st.booleans()) else np.savez_compressed) / "setmnist.npz"
    content = bytearray(path.read_bytes())
    # Headers and the directory are what is believed; most bytes are pictures.
    places = st.integers(0, 300) | st.integers(len(content) - 600, len(content) - 1)
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[at] = value
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    said: list[DatasetError] = []
    try:
        folder = archive.read(tmp_path, THREE)
        for name in {picture.place[0] for picture in folder.pictures if picture.place is not None}:
            assert all(pixels.nbytes == math.prod(pixels.shape) for pixels in archive.rows(path, name))
    except DatasetError as error:
        said.append(error)
    assert not any("\n" in str(each) for each in said)


# -------------------------------------------------------------------------------------------------------------- drawn


@pytest.mark.parametrize("colour", [False, True])
def test_drawn_sets_are_medmnists_and_the_same_for_the_same_seed(tmp_path: Path, colour: bool) -> None:
    contents: list[bytes] = []
    for seed in (1, 1, 2):
        folder = tmp_path / f"{len(contents)}"
        folder.mkdir()
        drawn_arrays.write(folder, THREE, 60, seed, 28, colour=colour)
        contents.append((folder / "drawn.npz").read_bytes())
        found = archive.read(folder, THREE)
        assert found.source == "drawn pictures of three"
        assert dataset.per_class(found.pictures, 3) == (20, 20, 20)
        assert found.sides is not None
        assert (len(found.sides.training), len(found.sides.held_out)) == (42, 18)
    assert contents[0] == contents[1] != contents[2]
    for images, side in ((29, 28), (60, 30)):
        with pytest.raises(DatasetError):
            drawn_arrays.arrays(THREE, images, 0, side)


def test_drawn_classes_can_be_told_apart() -> None:
    """By the nearest mean picture, which is far less than a network sees."""
    made = drawn_arrays.arrays(THREE, 240, 0)
    images, labels = made["train_images"].reshape(168, -1).astype(float), made["train_labels"][:, 0]
    means = np.stack([images[labels == label].mean(0) for label in range(3)])
    shown = made["test_images"].reshape(48, -1).astype(float)
    nearest = np.linalg.norm(shown[:, None] - means, axis=2).argmin(1)
    assert (nearest == made["test_labels"][:, 0]).mean() > 0.8

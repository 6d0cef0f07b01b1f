"""`python -m tests.fuzz.seeds`: writes the inputs that every fuzzer begins with into `tests/fuzz/corpus`.

All of them are made here from a seed: no patient's picture, no real account. Names that begin with `found-` are inputs
that a fuzzer found; they are not made here and stay.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
from concilia_kit import encodings, tensorfile
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.encoding import Encoding
from PIL import Image, PngImagePlugin

from tests.fuzz.checking import CORPUS

Seeds = Iterator[tuple[str, bytes]]


def tensor_files() -> Seeds:
    """Files of every dtype, none, and empty tensors."""
    source = np.random.default_rng(1)
    kinds = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "u1", "?")
    yield (
        "every-dtype",
        safetensors.numpy.save({f"t{kind}": source.integers(0, 2, (2, 3)).astype(kind) for kind in kinds}),
    )
    yield "metadata", safetensors.numpy.save({"a": np.zeros(3, "<f4")}, metadata={"format": "pt", "ü": "\n"})
    yield "no-elements", safetensors.numpy.save({"a": np.zeros((0, 5), "<f4"), "b": np.zeros((), "<i8")})
    yield "no-tensor", safetensors.numpy.save({})


def updates() -> Seeds:
    """One update in every encoding."""
    from tests.fuzz.targets import update  # makes its base when it is imported

    source = np.random.default_rng(2)
    trained = {
        name: tensor + (source.normal(size=tensor.shape) / 100).astype(tensor.dtype) if tensor.size < 1000 else tensor
        for name, tensor in update.base_tensors().items()
    }
    trained["large"][0, ::700] = 0.01
    with tempfile.TemporaryDirectory() as folder:
        base, path = Path(folder) / "base", Path(folder) / "update"
        tensorfile.write(base, update.base_tensors())
        for text in ("float16+zstd", "int8+zstd", "topk:0.003", "topk:0.003+zstd", "topk:0.01+zstd"):
            encodings.encode(path, Encoding.parse(text), trained, TensorFile.open(base), staleness=len(text) % 2)
            yield text.replace(":", "-"), path.read_bytes()
        tensorfile.write(path, {name: trained[name] for name in ("bias", "conv", "count")}, {encodings.STALENESS: "3"})
        yield "plain", path.read_bytes()


def messages() -> Seeds:
    """Messages with few members and with all of them."""
    head = (
        "consortium.example wants you to sign in with your Ethereum account:\n"
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\n\n"
    )
    tail = "URI: https://consortium.example/\nVersion: 1\nChain ID: 1337\nNonce: abcdef1234567890\n"
    tail += "Issued At: 2026-11-29T08:00:00Z"
    yield "short", f"{head}\n{tail}".encode()
    yield "statement", f"{head}Sign in to Concilia.\n\n{tail}\nExpiration Time: 2026-11-29T08:05:00Z".encode()
    yield "scheme", f"https://{head}I agree.\n\n{tail}".encode()
    rest = "Not Before: 2026-11-29T08:00:00Z\nRequest ID: 7\nResources:\n- https://a.example/x\n- urn:b:c"
    yield "everything", f"{head}All.\n\n{tail}\nExpiration Time: 2026-11-30T08:00:00.123+01:00\n{rest}".encode()


def submissions() -> Seeds:
    """An update as a node of today sends it, and as one of before there were encodings."""
    update = {
        "hospital": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        **{name: f"{number:064x}" for number, name in enumerate(("job", "base", "digest", "metrics"), 1)},
        "round": 3,
        "samples": 812,
    }
    counts = ("images", "lesions", "skipped_images", "epochs", "bytes_download", "bytes_upload")
    seconds = ("seconds_download", "seconds_training", "seconds_upload")
    metrics = {"loss": 0.25, "accuracy": 0.75, **dict.fromkeys(counts, 9), **dict.fromkeys(seconds, 1.5)}
    signature = "0x" + "1b" * 64 + "1c"
    yield "plain", json.dumps({"update": update, "metrics": metrics, "signature": signature}).encode()
    encoding = {"name": "topk", "share": 0.01, "zstd": True}
    encoded = {"encoding": encoding, "bytes": 10, "bytes_plain": 1000, "seconds": 0.5}
    late = metrics | {"encoded": encoded, "staleness": 2}
    yield "encoded", json.dumps({"update": update, "metrics": late, "signature": signature}).encode()


def pictures() -> Seeds:
    """Drawn pictures in the forms that decoders tell apart."""
    source = random.Random(3)
    plain = Image.new("RGB", (24, 16))
    plain.putdata([(source.randrange(256), x % 251, 90) for x in range(24 * 16)])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "drawn"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "drawn")
    text.add_text("Long", "drawn " * 40, zip=True)
    text.add_itxt("Title", "gezeichnet", "de", "Titel", zip=True)
    forms = {
        "baseline.jpg": (plain, {"quality": 60}),
        "progressive.jpg": (plain, {"progressive": True, "exif": exif, "comment": b"drawn"}),
        "grey.jpg": (plain.convert("L"), {"quality": 40}),
        "cmyk.jpg": (plain.convert("CMYK"), {"quality": 40, "dpi": (72, 72)}),
        "rgb.png": (plain, {"pnginfo": text, "exif": exif}),
        "alpha.png": (plain.convert("RGBA"), {}),
        "palette.png": (plain.quantize(8), {"transparency": b"\x00\x80"}),
        "one-bit.png": (plain.convert("1"), {"transparency": 0}),
        "sixteen-bit.png": (Image.new("I;16", (5, 4), 40000), {"icc_profile": b"\0" * 60}),
        "animated.png": (plain.convert("L"), {"save_all": True, "append_images": [Image.new("L", (24, 16), 7)]}),
    }
    for name, (image, options) in forms.items():
        out = io.BytesIO()
        image.save(out, "JPEG" if name.endswith("jpg") else "PNG", **options)
        yield name, out.getvalue()


def archives() -> Seeds:
    """MedMNIST's arrays, grey and in colour, packed and not, with labels of two kinds."""
    source = np.random.default_rng(4)
    for name, shape, kind, packed in (
        ("grey", (28, 28), "u1", True),
        ("colour", (28, 28, 3), "u1", True),
        ("grey-stored", (28, 28), "<i8", False),
    ):
        arrays = {}
        for part, count in (("train", 3), ("val", 1), ("test", 1)):
            arrays[f"{part}_images"] = source.integers(0, 4, (count, *shape), np.uint8)
            arrays[f"{part}_labels"] = source.integers(0, 7, (count, 1)).astype(kind)
        out = io.BytesIO()
        (np.savez_compressed if packed else np.savez)(out, **arrays)
        yield name, out.getvalue()


SEEDS = {
    "header": tensor_files,
    "tensors": tensor_files,
    "update": updates,
    "message": messages,
    "submission": submissions,
    "diagnosis_picture": pictures,
    "site_picture": pictures,
    "archive": archives,
}


def main() -> None:
    """Write the files."""
    for target, make in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in make():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()

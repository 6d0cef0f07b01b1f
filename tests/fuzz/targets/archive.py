"""A MedMNIST archive in a hospital's folder, read as client-node does: headers, labels, and every picture of it."""

from __future__ import annotations

import io
import random
import tempfile
import zipfile
from pathlib import Path

from concilia_client_node import archive
from concilia_client_node.errors import DatasetError
from concilia_kit.classification import LESIONS

from tests.fuzz import checking

DECLARED = (DatasetError,)
GROWTH = 64 * 2**20
"""As many labels as there may be, read and turned into numbers; pictures are read one at a time."""
_folder = tempfile.TemporaryDirectory(prefix="fuzz-archives-")
_PATH = Path(_folder.name) / "set.npz"
_WORDS = (b"'shape': (", b"'descr': '", b"|u1", b"<i8", b"|O", b"True", b"False", b", 28", b"(", b")", b"9" * 12, b"-1")


def run(data: bytes) -> None:
    """Read the table, then all pictures."""
    _PATH.write_bytes(data)
    found = archive.read(Path(_folder.name), LESIONS)
    assert found.pictures
    for part in ("train", "val", "test"):
        named = [each for each in found.pictures if each.lesion.startswith(f"{part}:")]
        shapes = [row.shape for row in archive.rows(_PATH, f"{part}_images")]
        assert len(shapes) == len(named)
        assert len(set(shapes)) <= 1


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change an array within, checksum and directory right; or say in the directory what is not so."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as before:
            members = {name: before.read(name) for name in before.namelist()[:16]}
    except Exception:  # it is no archive any more
        return checking.random_bytes(data, source)
    if not members:
        return checking.random_bytes(data, source)
    name = source.choice(list(members))
    content = members[name]
    match source.randrange(5):
        case 0:
            head = content[:128]
            word = source.choice(_WORDS)
            at = source.randrange(len(head) + 1)
            content = head[:at] + word + head[at + source.choice((0, len(word))) :] + content[128:]
        case 1:
            content = checking.random_bytes(content, source)
        case 2:
            del members[name]
            name = source.choice(("train_images.npy", "val_labels.npy", "x.npy", "../set.npy"))
        case 3:
            content = content[: source.randrange(len(content) + 1)]
        case _:
            content += bytes(source.choice((1, 128, 4096)))
    members[name] = content
    out = io.BytesIO()
    kind = source.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w", kind) as after:
        for each, value in members.items():
            after.writestr(each, value)
    return checking.random_bytes(out.getvalue(), source) if source.random() < 0.1 else out.getvalue()

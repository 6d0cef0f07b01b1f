"""A safetensors file on a disk: opened, every tensor read, written again, and read as what it was."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from concilia_kit import tensorfile
from concilia_kit.tensorfile import TensorFile

from tests.fuzz import structure

DECLARED = (tensorfile.MalformedFile,)
GROWTH = 64 * 2**20
_folder = tempfile.TemporaryDirectory(prefix="fuzz-tensors-")
_PATH, _AGAIN = Path(_folder.name) / "file", Path(_folder.name) / "again"


def run(data: bytes) -> None:
    """Open, read, write and compare."""
    _PATH.write_bytes(data)
    file = TensorFile.open(_PATH)
    tensors = {name: file.tensor(name) for name in file}
    assert b"".join(file.raw()) == data
    file.forget()
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(data) - file.header.data_start
    tensorfile.write(_AGAIN, tensors, file.header.metadata)
    again = TensorFile.open(_AGAIN)
    assert again.header.metadata == file.header.metadata
    for name, tensor in tensors.items():
        assert again.tensor(name).tobytes() == tensor.tobytes()
        assert again.header.tensors[name].shape == tensor.shape


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change the JSON or the data and keep the lengths right."""
    return structure.changed_tensorfile(data, source)

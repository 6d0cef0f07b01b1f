"""An encoded update, as the aggregator reads it: bytes of a member, against a base that everybody has."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
from concilia_kit import encodings, tensorfile
from concilia_kit.tensorfile import TensorFile

from tests.fuzz import structure

DECLARED = (tensorfile.MalformedFile,)
GROWTH = 64 * 2**20
_folder = tempfile.TemporaryDirectory(prefix="fuzz-update-")
_PATH = Path(_folder.name) / "update"
_BLOCK = 1 << 16


def base_tensors() -> dict[str, np.ndarray]:
    """The base: a convolution, a bias, a counter, a tensor of more than one block, and one without elements."""
    source = np.random.default_rng(7)
    return {
        "bias": source.normal(size=8).astype(np.float32),
        "conv": source.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "count": np.array(3, np.int64),
        "large": np.zeros((2, _BLOCK // 2 + 20), np.float32),
        "none": np.empty((0, 4), np.float32),
    }


tensorfile.write(Path(_folder.name) / "base", base_tensors())
_BASE = TensorFile.open(Path(_folder.name) / "base")


def run(data: bytes) -> None:
    """Read what an update says of itself, then all its tensors, block by block."""
    _PATH.write_bytes(data)
    update = TensorFile.open(_PATH)
    encodings.staleness_of(update)
    reader = encodings.reader(update, _BASE)
    for name, spec in reader.tensors.items():
        for start in range(0, spec.size, _BLOCK):
            stop = min(start + _BLOCK, spec.size)
            block = reader.block(name, start, stop)
            assert (block.size, block.dtype) == (stop - start, spec.dtype)
        assert reader.block(name, spec.size // 3, spec.size // 2).size == spec.size // 2 - spec.size // 3


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change the JSON or the data and keep the lengths right."""
    return structure.changed_tensorfile(data, source)

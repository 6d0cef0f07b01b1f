"""The header of a safetensors file; whatever it accepts, the reference implementation accepts and reads the same."""

from __future__ import annotations

import random

import safetensors
from concilia_kit import tensorheader

from tests.fuzz import structure

DECLARED = (tensorheader.MalformedFile,)
GROWTH = 64 * 2**20


def run(data: bytes) -> None:
    """Parse, and ask the reference implementation about what was accepted."""
    header = tensorheader.parse(data, len(data))
    reference = dict(safetensors.deserialize(data))
    assert reference.keys() == header.tensors.keys()
    for name, entry in header.tensors.items():
        begin, end = (header.data_start + at for at in (entry.begin, entry.end))
        assert (reference[name]["dtype"], reference[name]["shape"]) == (entry.dtype, list(entry.shape))
        assert reference[name]["data"] == data[begin:end]


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change the JSON and keep the lengths right."""
    return structure.changed_tensorfile(data, source)

"""The header of a safetensors file, checked against the file's size; needs no NumPy, for those who only look at it.

Checks follow the format's description and the findings of its published audit: a bounded header, no duplicate keys, no
holes, no overlap, no trailing bytes, sizes that agree with shapes. Nothing is allocated by what a header claims before
the claim was checked. Source: safetensors format, version 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from concilia_kit.sealing import MAGIC

MAX_HEADER = 4 * 2**20
"""Bytes of header accepted: a hundred thousand tensors, far beyond any model here."""

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element of each dtype accepted."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class MalformedFile(ValueError):
    """Bytes that are no acceptable safetensors file; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's dtype by its name in the format, its shape and its byte range [begin, end) within the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class RawHeader:
    """A checked header: tensors in file order, free-text metadata, and where the data section begins."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int


def parse(prefix: bytes, file_size: int) -> RawHeader:
    """Check the first bytes of a file (at least eight, and the whole header) against the file's size.

    Raises `MalformedFile`.
    """
    length = header_length(prefix, file_size)
    if len(prefix) < 8 + length:
        raise MalformedFile("the header is incomplete")
    header = prefix[8 : 8 + length]
    try:
        # Bounds the nesting, at 200. json is bounded by the interpreter's recursion limit alone, which libraries raise
        # (py_ecc to 100,000): deep enough, it runs out of stack and takes the process with it.
        from_json(header, cache_strings=False)
        document = json.loads(header.decode("utf-8"), object_pairs_hook=_unique, parse_int=_natural)
    except MalformedFile:
        raise
    except ValueError as error:  # not its JSONDecodeError alone: a number may have too many digits
        raise MalformedFile("the header is not JSON") from error
    if not isinstance(document, dict) or not prefix[8:9] == b"{":
        raise MalformedFile("the header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(_is_text(each) for item in metadata.items() for each in item):
        raise MalformedFile("__metadata__ must map names to text")
    if not all(map(_is_text, document)):
        raise MalformedFile("a tensor's name is no text")
    tensors = {name: _entry(name, entry) for name, entry in document.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end, item[0])))
    position = 0
    for name, spec in ordered.items():
        if spec.begin != position:
            raise MalformedFile(f"tensor {name!r} leaves a hole or overlaps another")
        position = spec.end
    if 8 + length + position != file_size:
        raise MalformedFile(f"the file has {file_size} bytes, its header describes {8 + length + position}")
    return RawHeader(ordered, metadata, 8 + length)


def header_length(prefix: bytes, file_size: int) -> int:
    """Bytes of JSON that the first eight bytes announce. Raises `MalformedFile` where they cannot be true."""
    if len(prefix) < 8:
        raise MalformedFile("shorter than the eight bytes that state the header's length")
    length = int.from_bytes(prefix[:8], "little")
    if prefix[:8] == MAGIC:
        raise MalformedFile("the file is sealed: it is of a store that is encrypted, and needs the store's key")
    if length > MAX_HEADER:
        raise MalformedFile(f"the header claims {length} bytes, more than the {MAX_HEADER} accepted")
    if length < 2 or 8 + length > file_size:
        raise MalformedFile("the header's length does not fit the file")
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedFile("the header names a key twice")
    return result


def _is_text(value: Any) -> bool:
    # JSON can escape one half of a surrogate pair, which Python takes and no UTF-8 can hold
    return isinstance(value, str) and _SURROGATE.search(value) is None


def _entry(name: str, entry: Any) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MalformedFile(f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise MalformedFile(f"tensor {name!r} has an unknown dtype")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise MalformedFile(f"tensor {name!r} has a malformed shape or range")
    begin, end = offsets
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise MalformedFile(f"tensor {name!r} has a range that does not fit its shape")
    return Entry(dtype, tuple(shape), begin, end)


def _natural(text: str) -> int:
    # -0 is 0 to Python and a fraction to the reference implementation, which refuses it.
    if text.startswith("-"):
        raise MalformedFile("a number is below 0")
    return int(text)


def _naturals(value: Any) -> bool:
    # bool is an int in Python, and no number in JSON
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)

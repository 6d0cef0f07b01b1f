"""safetensors files, read and written block by block over memory maps.

Header checks follow the format's description and the findings of its published audit: a bounded header, no duplicate
keys, no holes, no overlap, no trailing bytes, sizes that agree with shapes. Nothing is allocated by what a header
claims before the claim was checked against the file's size.

Written files equal the reference implementation's byte for byte (`safetensors.numpy.save`): tensors by descending
alignment then name, compact JSON, header padded with spaces to eight bytes. Source: safetensors format, version 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

MAX_HEADER = 4 * 2**20
"""Bytes of header accepted: a hundred thousand tensors, far beyond any model here."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The reference implementation orders by this rank, descending (its `Dtype` enumeration), then by name.
_RANK = {name: rank for rank, name in enumerate(("BOOL", "U8", "I8", "I16", "F16", "I32", "F32", "F64", "I64"))}


class MalformedFile(ValueError):
    """Bytes that are no acceptable safetensors file; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's dtype, shape and byte range [begin, end) within the data section."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: tensors in file order, free-text metadata, and where the data section begins."""

    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    data_start: int


def parse_header(prefix: bytes, file_size: int) -> Header:
    """Check the first bytes of a file (at least eight, and the whole header) against the file's size.

    Raises `MalformedFile`.
    """
    length = header_length(prefix, file_size)
    if len(prefix) < 8 + length:
        raise MalformedFile("the header is incomplete")
    try:
        document = json.loads(prefix[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MalformedFile("the header is not JSON") from error
    if not isinstance(document, dict) or not prefix[8:9] == b"{":
        raise MalformedFile("the header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedFile("__metadata__ must map names to text")
    tensors = {name: _spec(name, entry) for name, entry in document.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end, item[0])))
    position = 0
    for name, spec in ordered.items():
        if spec.begin != position:
            raise MalformedFile(f"tensor {name!r} leaves a hole or overlaps another")
        position = spec.end
    if 8 + length + position != file_size:
        raise MalformedFile(f"the file has {file_size} bytes, its header describes {8 + length + position}")
    return Header(ordered, metadata, 8 + length)


def header_length(prefix: bytes, file_size: int) -> int:
    """Bytes of JSON that the first eight bytes announce. Raises `MalformedFile` where they cannot be true."""
    if len(prefix) < 8:
        raise MalformedFile("shorter than the eight bytes that state the header's length")
    length = int.from_bytes(prefix[:8], "little")
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


def _spec(name: str, entry: Any) -> TensorSpec:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MalformedFile(f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise MalformedFile(f"tensor {name!r} has an unknown dtype")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise MalformedFile(f"tensor {name!r} has a malformed shape or range")
    spec = TensorSpec(dtype, tuple(shape), offsets[0], offsets[1])
    if spec.end - spec.begin != spec.nbytes:
        raise MalformedFile(f"tensor {name!r} has a range that does not fit its shape")
    return spec


def _naturals(value: Any) -> bool:
    # bool is an int in Python, and no number in JSON
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)


@dataclass(frozen=True)
class TensorFile:
    """A checked file, mapped read-only. `tensor` returns views: nothing is read before it is used."""

    path: Path
    header: Header
    _data: npt.NDArray[np.uint8] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check and map a file. Raises `MalformedFile` and `OSError`."""
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            prefix += file.read(header_length(prefix, size))
        header = parse_header(prefix, size)
        if size == header.data_start:
            data = np.empty(0, np.uint8)  # an empty range cannot be mapped
        else:
            data = np.memmap(path, np.uint8, mode="r", offset=header.data_start)
        return cls(path, header, data)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A read-only view of one tensor, shaped. Raises `KeyError`."""
        return self.flat(name).reshape(self.header.tensors[name].shape)

    def flat(self, name: str) -> npt.NDArray[Any]:
        """A read-only view of one tensor, one-dimensional. Raises `KeyError`."""
        spec = self.header.tensors[name]
        # frombuffer, unlike .view, accepts data that is not aligned to the dtype
        return np.frombuffer(self._data, spec.dtype, spec.size, spec.begin) if spec.nbytes else np.empty(0, spec.dtype)


def layout(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[str]]:
    """The header's bytes for tensors of these dtypes and shapes, and the order in which their data follows."""
    order = sorted(specs, key=lambda name: (-_RANK[_NAMES[specs[name].dtype]], name))
    document: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        spec = specs[name]
        document[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


class TensorWriter:
    """Writes a safetensors file front to back under a temporary name, and renames it when all of it is on disk.

    Use as a context manager; call `append` with one-dimensional blocks in the order of `order`. An error inside the
    context leaves no file. `digest` is the SHA-256 of what was written so far, taken in passing.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        self._header, self.order = layout(specs, metadata)
        self._expected = sum(spec.nbytes for spec in specs.values())
        self._written = 0
        self._path = path
        # Not the process id: it is 1 in every container.
        self._partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.partial")
        self._file: BinaryIO | None = None
        self._hasher = hashlib.sha256(self._header)

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written so far, as 64 hexadecimal characters."""
        return self._hasher.hexdigest()

    def __enter__(self) -> Self:
        self._file = self._partial.open("wb")
        self._file.write(self._header)
        return self

    def append(self, block: npt.NDArray[Any]) -> None:
        """Write the next block. Raises `OSError`."""
        if self._file is None:
            raise ValueError("the writer is not open")
        data = np.ascontiguousarray(block).data
        self._file.write(data)
        self._hasher.update(data)
        self._written += block.nbytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                if self._written != self._expected:
                    raise ValueError(f"{self._written} bytes of tensors written, {self._expected} announced")
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._partial.replace(self._path)
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

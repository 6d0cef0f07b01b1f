"""safetensors files, read and written block by block over memory maps; `tensorheader` checks what they say they hold.

Written files equal the reference implementation's byte for byte (`safetensors.numpy.save`): tensors by descending
alignment then name, compact JSON, header padded with spaces to eight bytes. Source: safetensors format, version 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from concilia_kit import tensorheader
from concilia_kit.sealing import NO_KEYS, Bytes, Keyring, Seal
from concilia_kit.storedfile import StoredFile
from concilia_kit.tensorheader import MalformedFile as MalformedFile
from concilia_kit.tensorheader import header_length

_STRETCH = 1 << 21
"""Bytes of a file that the system maps at once where it can. Giving back a part of them has it take the rest to pieces,
page by page, which costs more than reading them did."""
_FLUSHED = 16 * 2**20  # bytes that are on their way to the disk while more are written
_RAW = 2**20  # bytes of a whole file that are handed out at a time

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
    raw = tensorheader.parse(prefix, file_size)
    tensors = {
        name: TensorSpec(_DTYPES[each.dtype], each.shape, each.begin, each.end) for name, each in raw.tensors.items()
    }
    return Header(tensors, raw.metadata, raw.data_start)


@dataclass(frozen=True)
class TensorFile:
    """A checked file, mapped read-only. `tensor` returns views: nothing is read before it is used. Of a sealed file it
    decrypts what is asked for into memory of this process, every time."""

    path: Path
    header: Header
    _map: mmap.mmap = field(repr=False, compare=False)
    _content: npt.NDArray[np.uint8] = field(repr=False, compare=False)
    _seal: Seal | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path, keys: Keyring | None = None) -> Self:
        """Check and map a file; with `keys` one of a store, which may be sealed.

        Raises `MalformedFile`, `SealingKeyUnknown` and `OSError`.
        """
        with StoredFile.open(path, keys) as file:
            prefix = file.read(0, 8)
            prefix += file.read(8, header_length(prefix, file.size))
            header = parse_header(prefix, file.size)
            mapped = mmap.mmap(file.descriptor, file.begin + file.size, access=mmap.ACCESS_READ)
            return cls(path, header, mapped, np.frombuffer(mapped, np.uint8)[file.begin :], file.seal)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    @property
    def is_sealed(self) -> bool:
        """Whether what is asked for takes memory of this process."""
        return self._seal is not None

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """One tensor, shaped and read-only. Raises `KeyError`."""
        return self.flat(name).reshape(self.header.tensors[name].shape)

    def flat(self, name: str) -> npt.NDArray[Any]:
        """One tensor, one-dimensional and read-only. Raises `KeyError`."""
        spec = self.header.tensors[name]
        return self.piece(spec.dtype, spec.begin, spec.end)

    def piece(self, dtype: np.dtype[Any], begin: int, end: int) -> npt.NDArray[Any]:
        """Bytes `begin` to `end` of the data, which must be of tensors of that dtype, read-only."""
        size = (end - begin) // dtype.itemsize
        if not size:
            return np.empty(0, dtype)
        first = self.header.data_start + begin
        if self._seal is None:
            # frombuffer, unlike .view, accepts data that is not aligned to the dtype
            return np.frombuffer(self._content, dtype, size, first)
        return np.frombuffer(self._bytes(first, first + size * dtype.itemsize), dtype)

    def raw(self, end: int | None = None) -> Iterator[Bytes]:
        """The whole file, header and all, or its bytes before `end`, in pieces of up to a MB."""
        end = len(self._content) if end is None else end
        for start in range(0, end, _RAW):
            yield self._bytes(start, min(start + _RAW, end))

    def _bytes(self, start: int, stop: int) -> Bytes:
        there = self._content[start:stop].data
        return there if self._seal is None else self._seal.at(start)(there)

    def forget(self, begin: int = 0, end: int | None = None) -> int:
        """Give back the memory of the pages between bytes `begin` and `end` of the data (to the last for None).

        They stay in the system's cache, and are there again when they are read again. Returns the first byte that was
        not given back: the stretch of 2 MB with `end` stays, of which more may be needed.
        """
        data = len(self._map) - len(self._content) + self.header.data_start
        first = (data + begin) // _STRETCH * _STRETCH
        last = len(self._map) if end is None else (data + end) // _STRETCH * _STRETCH
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        return max(last - data, begin)


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
    context leaves no file. `digest` is the SHA-256 of what was written so far, taken in passing. A `lasting` file is on
    the disk when the context is left: it goes there while the rest is made. Another may be gone after a power cut.
    The file is sealed where `keys` have a current one.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str] | None = None,
        *,
        lasting: bool = True,
        keys: Keyring = NO_KEYS,
    ) -> None:
        self._header, self.order = layout(specs, metadata)
        seal = keys.seal()
        self._begin = b"" if seal is None else seal.header
        self._sealed: Callable[[Bytes], bytes] | None = None if seal is None else seal.at(0)
        self._expected = sum(spec.nbytes for spec in specs.values())
        self._written = 0
        self._path = path
        # Not the process id: it is 1 in every container.
        self._partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.partial")
        self._file: BinaryIO | None = None
        self._hasher = hashlib.sha256(self._header)
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush") if lasting else None
        self._flush: Future[None] | None = None
        self._flushed = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written so far, as 64 hexadecimal characters."""
        return self._hasher.hexdigest()

    def __enter__(self) -> Self:
        self._file = self._partial.open("wb")
        self._file.write(self._begin)
        self._file.write(self._header if self._sealed is None else self._sealed(self._header))
        return self

    def append(self, block: npt.NDArray[Any]) -> None:
        """Write the next block. Raises `OSError`."""
        if self._file is None:
            raise ValueError("the writer is not open")
        data = np.ascontiguousarray(block)
        self._file.write(data.data if self._sealed is None else self._sealed(data.reshape(-1).view(np.uint8).data))
        self._hasher.update(data.data)
        self._written += block.nbytes
        if self._flusher and self._written - self._flushed >= _FLUSHED and (self._flush is None or self._flush.done()):
            self._await_flush()
            self._flush, self._flushed = self._flusher.submit(os.fdatasync, self._file.fileno()), self._written

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                if self._written != self._expected:
                    raise ValueError(f"{self._written} bytes of tensors written, {self._expected} announced")
                self._await_flush()
                self._file.flush()
                if self._flusher:
                    os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._partial.replace(self._path)
        finally:
            if self._flusher:
                self._flusher.shutdown()  # before its file is closed
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _await_flush(self) -> None:
        if self._flush is not None:
            self._flush.result()


def write(
    path: Path,
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
    *,
    lasting: bool = True,
    keys: Keyring = NO_KEYS,
) -> str:
    """Write whole tensors, taken one by one; equal tensors give equal bytes. Returns the SHA-256. See `TensorWriter`.

    Raises `OSError`.
    """
    specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with TensorWriter(path, specs, metadata, lasting=lasting, keys=keys) as writer:
        for name in writer.order:
            writer.append(tensors[name].reshape(-1))
    return writer.digest

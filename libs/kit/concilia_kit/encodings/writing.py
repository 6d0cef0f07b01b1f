"""A trained model written as an update in some encoding, and what that leaves out."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from concilia_kit import tensorfile
from concilia_kit.encodings.base import SCALES, Codec, Floats, NotEncodable
from concilia_kit.encodings.codecs import codec_of
from concilia_kit.encodings.reading import METADATA, SALT, STALENESS
from concilia_kit.encodings.zstd import compressed
from concilia_kit.tensorfile import TensorFile, TensorSpec, TensorWriter
from concilia_kit.wire.encoding import Encoding

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Written:
    """An update's file: SHA-256, bytes, and bytes that the tensors have as they are."""

    digest: str
    size: int
    size_plain: int


def encode(
    path: Path,
    encoding: Encoding,
    tensors: Tensors,
    base: TensorFile,
    before: TensorFile | None = None,
    left: Path | None = None,
    staleness: int = 0,
    salt: str = "",
) -> Written:
    """Write an update, tensor by tensor, each hashed while it is written. It may be gone after a power cut: whoever
    keeps it sees to it that it lasts.

    With `before`, what earlier updates left out is added to the difference first. With `left`, what this one leaves
    out, `trained + before - decoded`, is written there: F32 tensors by name, of those that are not sent exactly.
    `staleness`: by how many rounds it is late, which the file says (`staleness_of`). `salt`: text that makes its digest
    another one.

    Raises `NotEncodable` where names, shapes and dtypes are not the base's, or a value is not finite, `OSError`.
    """
    specs = base.header.tensors
    if {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} != {
        name: (spec.dtype, spec.shape) for name, spec in specs.items()
    }:
        raise NotEncodable("the trained tensors are not the base's in name, shape and dtype")
    plain = sum(spec.nbytes for spec in specs.values())
    more = ({STALENESS: str(staleness)} if staleness else {}) | ({SALT: salt} if salt else {})
    if encoding.plain:
        digest = tensorfile.write(path, tensors, more, lasting=False)
        return Written(digest, path.stat().st_size, plain)
    codecs = {name: codec for name, spec in specs.items() if (codec := codec_of(encoding, spec)) is not None}
    lossy = {name: TensorSpec(specs[name].dtype, specs[name].shape) for name in codecs}
    scales: list[Floats] = []
    with tempfile.TemporaryFile(dir=path.parent) as file, _rest(left, lossy) as rest:
        stored = _Spool(file, encoding.zstd)
        for name in sorted(specs):
            if name not in codecs:
                stored.add(name, tensors[name])
                continue
            left_out, own = _encode(codecs[name], name, specs[name], tensors, base, before, stored)
            scales.append(own)
            if rest is not None:
                rest.append(left_out)
        if codecs:
            stored.add(SCALES, np.concatenate(scales))
        digest = stored.write(path, {METADATA: str(encoding), **more})
    return Written(digest, path.stat().st_size, plain)


def _encode(
    codec: Codec,
    name: str,
    spec: TensorSpec,
    tensors: Tensors,
    base: TensorFile,
    before: TensorFile | None,
    stored: _Spool,
) -> tuple[Floats, Floats]:
    """Store one tensor's difference; what is left out of it, flat, and its scales."""
    trained: Floats = tensors[name].reshape(-1)
    start = base.flat(name)
    with np.errstate(over="ignore", invalid="ignore"):  # the codec refuses what is not finite
        delta = trained - start
        kept = before.flat(name) if before is not None and _has(before, name, spec) else None
        if kept is not None:
            delta += kept
        arrays, scales = codec.encode(name, spec.shape, delta)
        for part, array in arrays.items():
            stored.add(part, array)
        # From the sum as it will be decoded: its rounding is left out of the update too.
        left = trained - codec.decoder(name, spec, _InMemory(arrays), scales).added(start, 0, spec.size)
        if kept is not None:
            left += kept
    return left, scales


def _has(before: TensorFile, name: str, spec: TensorSpec) -> bool:
    found = before.header.tensors.get(name)
    return found is not None and (found.dtype, found.shape) == (spec.dtype, spec.shape)


@contextlib.contextmanager
def _rest(left: Path | None, lossy: Mapping[str, TensorSpec]) -> Iterator[TensorWriter | None]:
    if left is None:
        yield None
        return
    with TensorWriter(left, lossy) as writer:
        assert writer.order == sorted(lossy), "of one dtype, tensors are in the order of their names"
        yield writer


class _InMemory:
    """See `Arrays`: what was just encoded."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = arrays

    def claim(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> _Whole:
        array = self._arrays[name]
        assert (array.dtype, array.shape) == (np.dtype(dtype), shape), name
        return _Whole(array.reshape(-1))

    def finish(self) -> None:
        pass


class _Whole:
    def __init__(self, flat: npt.NDArray[Any]) -> None:
        self._flat = flat

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self._flat[start:stop]


class _Spool:
    """Arrays on disk as they come: a safetensors file begins with the sizes of all of them, some of which are known
    only when they are encoded."""

    def __init__(self, file: BinaryIO, zstd: bool) -> None:
        self._file = file
        self._zstd = zstd
        self._at = 0
        self._specs: dict[str, TensorSpec] = {}

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Keep an array. Raises `OSError`."""
        for part, stored in compressed(name, array) if self._zstd else [(name, array)]:
            if part in self._specs:
                raise NotEncodable(f"two arrays would be named {part!r}")
            self._specs[part] = TensorSpec(stored.dtype, stored.shape, self._at, self._at + stored.nbytes)
            self._file.write(np.ascontiguousarray(stored).data)
            self._at += stored.nbytes

    def write(self, path: Path, metadata: Mapping[str, str]) -> str:
        """All of them as a safetensors file; its SHA-256. Raises `OSError`."""
        self._file.flush()
        data = np.memmap(self._file, np.uint8, mode="r") if self._at else np.empty(0, np.uint8)
        with TensorWriter(path, self._specs, metadata, lasting=False) as writer:
            for name in writer.order:
                writer.append(data[self._specs[name].begin : self._specs[name].end])
        return writer.digest

"""What every encoding offers: to who folds an update, a reader; to who makes one, arrays to store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec

Floats = npt.NDArray[np.float32]

SMALL = 4096
"""Elements up to which a tensor of one axis (or none) has its difference sent as halves in every encoding of
differences: biases, and batch normalisation's weights and running statistics. They are some hundredths of a network's
bytes, and a variance that is off spoils a whole channel."""


class NotEncodable(ValueError):
    """Tensors that cannot be encoded: they are not the base's, or not finite."""


class Reader(Protocol):
    """An update, read block by block in the dtypes of the model it updates, however its file is encoded."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """The tensors it stands for: names, dtypes and shapes as decoded. Byte ranges mean nothing here."""
        ...

    def block(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements `start` to `stop` of a tensor, one-dimensional, decoded; a view where nothing needs decoding.

        Deterministic to the last bit. Safe to call from several threads. Raises `KeyError`, `MalformedFile`.
        """
        ...


class Plain:
    """A file that holds the tensors themselves."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See `Reader`."""
        return self._file.header.tensors

    def block(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """See `Reader`."""
        spec = self._file.header.tensors[name]
        begin, end = (spec.begin + min(at, spec.size) * spec.dtype.itemsize for at in (start, stop))
        return self._file.piece(spec.dtype, begin, end)


class Array(Protocol):
    """A stored array, read by ranges of elements of its flat form."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements `start` to `stop`, which must be within. Raises `MalformedFile`."""
        ...


class Arrays(Protocol):
    """The arrays of an encoded file, each of which is claimed once, by who knows what it must be."""

    def claim(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
        """The array of that name. Raises `MalformedFile` where it is not there, or is not of that dtype and shape."""
        ...

    def finish(self) -> None:
        """Raises `MalformedFile` where something was claimed by nobody."""
        ...


class StoredArrays:
    """Arrays that are a file's tensors."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._left = set(file)

    def claim(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> _Stored:
        """See `Arrays`."""
        if name not in self._left:
            raise MalformedFile(f"the encoded update lacks {name!r}")
        found = self._file.header.tensors[name]
        if (found.dtype, found.shape) != (np.dtype(dtype), shape):
            raise MalformedFile(
                f"{name!r} is {found.dtype} {list(found.shape)} where its encoding has {np.dtype(dtype)} {list(shape)}"
            )
        self._left.discard(name)
        return _Stored(self._file, name)

    def length(self, name: str) -> int:
        """Elements of a tensor whose length the encoding leaves open; 0 where there is none."""
        found = self._file.header.tensors.get(name)
        return found.size if found else 0

    def finish(self) -> None:
        """See `Arrays`."""
        if self._left:
            raise MalformedFile(f"the encoded update has the foreign {min(self._left)!r}")


class _Stored:
    def __init__(self, file: TensorFile, name: str) -> None:
        self._file = file
        self._spec = file.header.tensors[name]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        begin, size = self._spec.begin, self._spec.dtype.itemsize
        return self._file.piece(self._spec.dtype, begin + start * size, begin + stop * size)


class Decoder(Protocol):
    """One tensor's decoded difference from the base."""

    def added(self, base: Floats, start: int, stop: int) -> Floats:
        """`base`, which is elements `start` to `stop` of the base, plus their difference, as a new array: the
        difference in float32, then its float32 sum with the base, each rounded to nearest, ties to even.

        Raises `MalformedFile`.
        """
        ...


class Codec(Protocol):
    """An encoding of differences, tensor by tensor."""

    def scales(self, shape: tuple[int, ...]) -> int:
        """How many scales a tensor of that shape has. Those of all tensors are one array, in the order of names."""
        ...

    def encode(self, name: str, shape: tuple[int, ...], delta: Floats) -> tuple[dict[str, npt.NDArray[Any]], Floats]:
        """What is stored of the flat difference of a tensor of that shape: arrays by name, all beginning with its own,
        and scales.

        Raises `NotEncodable` where an element is not finite.
        """
        ...

    def decoder(self, name: str, spec: TensorSpec, arrays: Arrays, scales: Floats) -> Decoder:
        """Claims what is stored of a tensor. Raises `MalformedFile`."""
        ...


SCALES = "#scales"
"""The array of all scales, F32."""


def is_exact(spec: TensorSpec) -> bool:
    """Whether a tensor is sent as it is, in every encoding: counters, and floats of other precisions."""
    return spec.dtype != np.float32


def is_small(spec: TensorSpec) -> bool:
    """Whether a tensor's difference is sent as halves, in every encoding of differences."""
    return len(spec.shape) < 2 and spec.size <= SMALL


def peak(delta: Floats) -> float:
    """The largest magnitude, 0.0 of an empty array. Raises `NotEncodable` where it is not finite."""
    if not delta.size:
        return 0.0
    largest = max(float(delta.max()), -float(delta.min()))  # each is NaN where an element is
    if not np.isfinite(largest):
        raise NotEncodable("a trained tensor is not finite")
    return largest

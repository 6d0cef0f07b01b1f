"""Half precision of the difference from the base.

Of the difference, not of the weights: a half has eleven significant bits, so a weight would be off by up to 2^-12 of
itself, which after a short round is as much as it moved; a difference is off by 2^-12 of the little that it is. One
scale a tensor, a power of two, puts the largest difference just below the largest half, so that small ones are not lost
below the smallest; multiplying by it rounds nothing. Source: Micikevicius et al., "Mixed Precision Training" (2018),
section 3.2, which scales for that reason.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from concilia_kit.encodings.base import Array, Arrays, Floats, peak
from concilia_kit.tensorfile import TensorSpec

_TOP = 15  # scaled differences are below 2^15, half of the largest half's binade
_LARGEST, _SMALLEST = 112, -126  # exponents of scales: a half times either is a float32
# What each of the 65,536 halves is; looking it up is three times as fast as NumPy's conversion.
_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def scale_of(delta: Floats) -> np.float32:
    """The power of two by which halves are multiplied to give these differences. Raises `NotEncodable`."""
    largest = peak(delta)
    exponent = math.frexp(largest)[1] - _TOP if largest else 0
    return np.float32(2.0 ** min(max(exponent, _SMALLEST), _LARGEST))


def to_halves(delta: Floats, scale: np.float32) -> npt.NDArray[np.float16]:
    """Differences divided by their scale, rounded to the nearest half."""
    return (delta.astype(np.float64) / float(scale)).astype(np.float16) if delta.size else np.empty(0, np.float16)


def from_halves(halves: npt.NDArray[np.float16], scale: np.float32) -> Floats:
    """Halves times their scale, as a new array."""
    out = np.empty(halves.size, np.float32)
    np.take(_HALVES, halves.view(np.uint16), out=out, mode="clip")  # "raise" would go through a second buffer
    out *= scale
    return out


class Float16:
    """See `Codec`. Stores a tensor as F16 of its shape under its name."""

    def scales(self, shape: tuple[int, ...]) -> int:
        """See `Codec`."""
        del shape
        return 1

    def encode(self, name: str, shape: tuple[int, ...], delta: Floats) -> tuple[dict[str, npt.NDArray[Any]], Floats]:
        """See `Codec`."""
        scale = scale_of(delta)
        return {name: to_halves(delta, scale).reshape(shape)}, np.array([scale])

    def decoder(self, name: str, spec: TensorSpec, arrays: Arrays, scales: Floats) -> Halves:
        """See `Codec`."""
        return Halves(arrays.claim(name, np.float16, spec.shape), scales[0])


class Halves:
    """See `Decoder`."""

    def __init__(self, halves: Array, scale: np.float32) -> None:
        self._halves = halves
        self._scale = scale

    def added(self, base: Floats, start: int, stop: int) -> Floats:
        """See `Decoder`."""
        out = from_halves(self._halves.read(start, stop), self._scale)
        out += base
        return out

"""Changes of a model as whole numbers of 32 bits that add up, modulo 2**32, to the change of the mean.

A change of element k by d becomes `rint(d / R * samples / W * S)`: R is how far its tensor may change, W the samples of
the whole roster, S = 2**31 - 1 - n for a roster of n members. So the sum of any of them is less than 2**31 in absolute
value, roundings and all, and comes out of the sum modulo 2**32 as it is. Of a sum by survivors of N samples the mean
model is `base + sum * (R / S * W / N)`, in float64, rounded once to the tensor's dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from concilia_kit.masking.errors import MaskingError
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.masking import Roster

WORD = np.dtype("<i4")
PIECE = 1 << 15
"""Elements that are worked at at a time: 256 KB as float64."""

Array = npt.NDArray[Any]


def floating(base: TensorFile) -> list[str]:
    """Names of the tensors that are masked, in the order in which their elements are counted."""
    return sorted(name for name, spec in base.header.tensors.items() if np.issubdtype(spec.dtype, np.floating))


@dataclass(frozen=True, slots=True)
class Scale:
    """How words stand for changes: `step` is R / S of each tensor, `samples` W."""

    steps: dict[str, float]
    reach: dict[str, float]
    samples: int

    @classmethod
    def of(cls, roster: Roster, bound: float, base: TensorFile) -> Scale:
        """Reads the base once. A tensor may change by `bound` times its largest absolute value, or times one where that
        is less. Raises `MaskingError` where the base is not finite."""
        unit = 2**31 - 1 - len(roster.members)
        reach = {name: bound * max(1.0, _largest(base, name)) for name in floating(base)}
        return cls({name: each / unit for name, each in reach.items()}, reach, roster.samples)

    def quantise(self, name: str, changes: npt.NDArray[np.float64], samples: int, words: npt.NDArray[np.int32]) -> int:
        """Changes of elements of a tensor into `words`; how many were cut off. `changes` is used up.

        Raises `MaskingError` where a change is not finite.
        """
        reach, cut = self.reach[name], 0
        low, high = float(changes.min(initial=0.0)), float(changes.max(initial=0.0))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise MaskingError(f"{name} is not finite")
        if low < -reach or high > reach:
            cut = int(np.count_nonzero(np.abs(changes) > reach))
            np.clip(changes, -reach, reach, out=changes)
        np.multiply(changes, samples / self.samples / self.steps[name], out=changes)
        np.rint(changes, out=changes)
        np.copyto(words, changes, casting="unsafe")
        return cut

    def decode(self, name: str, sums: npt.NDArray[np.int32], samples: int, base: Array) -> Array:
        """The mean model's elements from the sum of words of members with `samples` together; in the base's dtype."""
        mean = np.multiply(sums, self.steps[name] * (self.samples / samples), dtype=np.float64)
        np.add(mean, base, out=mean)
        with np.errstate(over="ignore"):  # whoever folds refuses what is not finite
            return mean.astype(base.dtype)


def block_of(file: TensorFile, name: str, start: int, stop: int) -> Array:
    """Elements of a tensor of a file as it lies; no more is decrypted of a sealed one."""
    spec = file.header.tensors[name]
    size = spec.dtype.itemsize
    return file.piece(spec.dtype, spec.begin + start * size, spec.begin + stop * size)


def _largest(base: TensorFile, name: str) -> float:
    spec, largest = base.header.tensors[name], 0.0
    for start in range(0, spec.size, PIECE):
        block = block_of(base, name, start, min(start + PIECE, spec.size))
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise MaskingError(f"{name} of the base is not finite")
        largest = max(largest, high, -low)
    base.forget()
    return largest

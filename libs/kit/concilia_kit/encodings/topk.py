"""The largest differences from the base alone; the others wait for the next update (error feedback).

Of each tensor the share k of largest magnitude, at least one element. What is not sent is added to the next update's
difference, without which most of it would never be: Stich et al., "Sparsified SGD with Memory" (2018); Aji and
Heafield, "Sparse Communication for Distributed Gradient Descent" (2017); by tensor, as Lin et al., "Deep Gradient
Compression" (2018), since layers move by different amounts.

A tensor is cut into blocks of 65,536 elements which decode by themselves. Within a block, an element's place is the gap
to the one before it, as a number of one byte, or of two where the share is below 1/128 and gaps are long; the largest
number of that width stands for as many places without an element. Values are halves (see `float16`); what that leaves
out waits too.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from concilia_kit.encodings.base import Array, Arrays, Floats, peak
from concilia_kit.encodings.float16 import from_halves, scale_of, to_halves
from concilia_kit.tensorfile import MalformedFile, TensorSpec

BLOCK = 1 << 16
_WIDE_BELOW = 1 / 128  # share

Places = npt.NDArray[np.int64]


def count_of(share: float, size: int) -> int:
    """How many elements of a tensor are sent."""
    return min(size, max(1, math.ceil(share * size)))


def largest(delta: Floats, count: int) -> Places:
    """Where the `count` elements of largest magnitude are, ascending; among equals any."""
    if count >= delta.size:
        return np.arange(delta.size)
    return np.sort(np.argpartition(np.abs(delta), delta.size - count)[delta.size - count :])


class TopK:
    """See `Codec`. Stores of a tensor `name#values` (F16, as many as are sent), `name#places` (U8, the gaps) and
    `name#blocks` (I64, a row a block and one more: bytes of places and values before it)."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._gap = np.dtype("<u2") if share < _WIDE_BELOW else np.dtype("u1")

    def scales(self, shape: tuple[int, ...]) -> int:
        """See `Codec`."""
        del shape
        return 1

    def encode(self, name: str, shape: tuple[int, ...], delta: Floats) -> tuple[dict[str, npt.NDArray[Any]], Floats]:
        """See `Codec`."""
        del shape
        peak(delta)
        places = largest(delta, count_of(self._share, delta.size))
        bounds = np.searchsorted(places, np.arange(-(-delta.size // BLOCK) + 1) * BLOCK)
        gaps = [
            to_gaps(places[first:last] - block * BLOCK, self._gap)
            for block, (first, last) in enumerate(itertools.pairwise(bounds))
        ]
        ends = np.cumsum([0, *(each.nbytes for each in gaps)])
        values = delta[places]
        scale = scale_of(values)
        arrays: dict[str, npt.NDArray[Any]] = {
            f"{name}#values": to_halves(values, scale),
            f"{name}#places": np.concatenate([np.empty(0, self._gap), *gaps]).view(np.uint8),
            f"{name}#blocks": np.stack([ends, bounds], axis=1).astype(np.int64),
        }
        return arrays, np.array([scale])

    def decoder(self, name: str, spec: TensorSpec, arrays: Arrays, scales: Floats) -> Sparse:
        """See `Codec`."""
        count, blocks = count_of(self._share, spec.size), -(-spec.size // BLOCK)
        table = arrays.claim(f"{name}#blocks", np.int64, (blocks + 1, 2)).read(0, 2 * blocks + 2).reshape(-1, 2)
        length = int(table[-1, 0])
        if table[0].any() or (table[1:] < table[:-1]).any() or table[-1, 1] != count or not 0 <= length <= _MOST:
            raise MalformedFile(f"{name!r} has a table of blocks that does not add up")
        if (table[:, 0] % self._gap.itemsize).any():
            raise MalformedFile(f"{name!r} has a block that begins within a gap")
        return Sparse(
            name,
            spec.size,
            table,
            arrays.claim(f"{name}#places", np.uint8, (length,)),
            arrays.claim(f"{name}#values", np.float16, (count,)),
            scales[0],
            self._gap,
        )


_MOST = 2**48  # bytes; the file's size bounds it further


def to_gaps(places: Places, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Ascending places within a block as gaps of that width."""
    longest = int(np.iinfo(dtype).max)
    skips, rests = np.divmod(np.diff(places, prepend=-1) - 1, longest)
    gaps = np.full(int(skips.sum()) + places.size, longest, dtype)
    gaps[np.cumsum(skips + 1) - 1] = rests
    return gaps


def from_gaps(gaps: npt.NDArray[Any]) -> Places:
    """The places that gaps stand for, ascending."""
    is_element = gaps != np.iinfo(gaps.dtype).max
    after: Places = np.cumsum(gaps, dtype=np.int64)
    places: Places = after[is_element]
    return places + np.arange(places.size)


class Sparse:
    """See `Decoder`."""

    def __init__(
        self,
        name: str,
        size: int,
        table: Places,
        places: Array,
        values: Array,
        scale: np.float32,
        gap: np.dtype[Any],
    ) -> None:
        self._name = name
        self._size = size
        self._table = table
        self._places = places
        self._values = values
        self._scale = scale
        self._gap = gap

    def added(self, base: Floats, start: int, stop: int) -> Floats:
        """See `Decoder`."""
        out = base.copy()
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            places, values = self._block(block)
            places += block * BLOCK - start
            first, last = np.searchsorted(places, (0, stop - start))
            out[places[first:last]] += values[first:last]
        return out

    def _block(self, block: int) -> tuple[Places, Floats]:
        (byte, first), (end, last) = self._table[block].tolist(), self._table[block + 1].tolist()
        room = min(BLOCK, self._size - block * BLOCK)
        if end - byte > 2 * BLOCK or last - first > room:
            raise MalformedFile(f"{self._name!r} has a block of more elements than there are")
        places = from_gaps(self._places.read(byte, end).view(self._gap))
        if places.size != last - first or (places.size and places[-1] >= room):
            raise MalformedFile(f"{self._name!r} has a block whose places are not its elements'")
        return places, from_halves(self._values.read(first, last), self._scale)

"""Weighted means and sums of blocks, by the compiled part; `Columns` is how that reads blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concilia_aggregator.exact.kernels import Block, load

_EXACT_WEIGHT = 1 << 29
_EXACT_TOTAL = 1 << 53
_MOST_TOTAL = 1 << 63
_GATHERED = 1 << 18  # values that are widened at a time on the slow road: 2 MB
NARROW = (np.dtype(np.float16), np.dtype(np.float32))


class NotFinite(ValueError):
    """A value that is infinite or no number: there is no mean. Screening leaves such updates out."""


@dataclass(frozen=True, slots=True)
class Sum:
    """An exact weighted sum of blocks: element `i` is `values[i]` plus all of `rest` whose place in `at` is `i`.

    `values`: float64, as long as the blocks. `at` (int64, ascending), `rest` (float64): what one float64 does not hold.
    """

    values: Block
    at: Block
    rest: Block


def weighted_mean(blocks: Sequence[Block], samples: Sequence[int]) -> Block:
    """The correctly rounded mean of one-dimensional blocks of one floating dtype and length.

    Raises `ValueError` for no blocks or a sample count below 1 or a sum of 2^63, `NotFinite`.
    """
    total = _total(blocks, samples)
    dtype = blocks[0].dtype
    columns = Columns(widened(blocks), np.asarray(samples, np.int64))
    if is_summed(dtype, samples):
        return _mean(columns, np.empty(0, np.int64), total, dtype)
    return _again(columns, total, dtype, None)


def weighted_sum(blocks: Sequence[Block], samples: Sequence[int]) -> Sum:
    """The exact sum of float16 or float32 blocks times their samples, below 2^29 each. Raises as `weighted_mean`."""
    _total(blocks, samples)
    if blocks[0].dtype not in NARROW or max(samples) >= _EXACT_WEIGHT:
        raise ValueError("sums are kept of float16 and float32 blocks and of samples below 2^29")
    columns = Columns(widened(blocks), np.asarray(samples, np.int64))
    kernels = load()
    values = np.empty(blocks[0].size)
    places = np.empty(values.size, np.int64)
    found = kernels.add(columns.addresses, columns.weights.astype(np.float64), values, places)
    at: list[Block] = []
    rest: list[Block] = []
    for some, gathered in columns.at(places[:found]):
        # float32's range, a weight's bits and those of the number of values, in pieces of 53 bits
        room = some.size * 8
        where, what = np.empty(room, np.int64), np.empty(room)
        used = kernels.components(gathered, columns.weights, some, values, where, what)
        _check(used >= 0)
        at.append(where[:used].copy())
        rest.append(what[:used].copy())
    if not at:
        return Sum(values, np.empty(0, np.int64), np.empty(0))
    return Sum(values, np.concatenate(at), np.concatenate(rest))


def mean_of(sums: Sequence[Sum], total: int, dtype: np.dtype[Any]) -> Block:
    """The correctly rounded mean of what the sums are of, `total` samples in all, in float16 or float32.

    Raises `ValueError` for no sums, and for a total below 1 or above 2^53; `NotFinite`.
    """
    if not sums or not 0 < total < _EXACT_TOTAL:
        raise ValueError("nothing to average")
    columns = Columns(_contiguous([each.values for each in sums]), np.ones(len(sums), np.int64))
    for each in sums:
        if each.at.size:
            columns.add(each.at, each.rest)
    return _mean(columns, columns.marked(), total, dtype)


def mean_of_rows(values: Block, dtype: np.dtype[Any]) -> Block:
    """Each row's correctly rounded mean; `values`: float64, rows by columns. Raises `NotFinite`."""
    out, count = np.empty(len(values)), values.shape[1]
    _check(load().means(values, np.ones(count, np.int64), count, dtype != np.float64, out))
    return out.astype(dtype)


def squared_distance(block: Block, other: Block | None) -> float:
    """The sum of the squares of `block - other`, or of `block`, in float64; one floating dtype and length.

    Not correctly rounded, but one value for one block. Not finite where a value is not.
    """
    ours = widened([block])[0]
    theirs = ours if other is None else widened([other])[0]
    return load().squares(ours, theirs, other is not None)


def is_summed(dtype: np.dtype[Any], samples: Sequence[int]) -> bool:
    """Whether exact sums are kept of blocks of a dtype, with such samples (`weighted_sum`)."""
    return dtype in NARROW and max(samples) < _EXACT_WEIGHT and sum(samples) < _EXACT_TOTAL


class Columns:
    """Blocks as the kernels read them, with what else is to be added at some places."""

    def __init__(self, blocks: list[Block], weights: Block) -> None:
        self.blocks = blocks  # kept for as long as their addresses are
        self.addresses = np.array([block.__array_interface__["data"][0] for block in blocks], np.int64)
        self.weights = weights
        self.wide = blocks[0].dtype == np.float64
        self._extras: list[tuple[Block, Block]] = []

    def add(self, at: Block, rest: Block) -> None:
        """Add values at places, one after another."""
        self._extras.append((at, rest))

    def marked(self) -> Block:
        """The places where something else is to be added, ascending."""
        return np.unique(np.concatenate([at for at, _ in self._extras])) if self._extras else np.empty(0, np.int64)

    def at(self, places: Block | None) -> Any:
        """Some of the places (all of them for None) and the values there, row by row (float64), at a time."""
        kernels = load()
        size = self.blocks[0].size if places is None else places.size
        step = max(1, _GATHERED // len(self.blocks))
        for start in range(0, size, step):
            stop = min(size, start + step)
            some = np.arange(start, stop) if places is None else places[start:stop]
            values = np.empty((some.size, len(self.blocks)))
            kernels.gather(self.addresses, self.wide, some, values)
            yield some, values

    def with_extras(self, some: Block, values: Block) -> tuple[Block, Block]:
        """Rows of values and their weights, a column more for each further value of the place that has most of them."""
        parts, weights = [values], [self.weights]
        for at, rest in self._extras:
            low = np.searchsorted(at, some, "left")
            count = np.searchsorted(at, some, "right") - low
            for which in range(int(count.max(initial=0))):
                has = count > which
                more = np.full((some.size, 1), -0.0)
                more[has, 0] = rest[low[has] + which]
                parts.append(more)
                weights.append(np.ones(1, np.int64))
        if len(parts) == 1:
            return values, self.weights
        return np.concatenate(parts, axis=1), np.concatenate(weights)


def _mean(columns: Columns, marked: Block, total: int, dtype: np.dtype[Any]) -> Block:
    size = columns.blocks[0].size
    out = np.empty(size, np.float32 if dtype == np.float32 else np.float64)
    places = np.empty(size, np.int64)
    weights = columns.weights.astype(np.float64)
    found = places[: load().mean(columns.addresses, weights, columns.wide, float(total), out, places)]
    if marked.size:
        found = np.union1d(found, marked)
    if found.size:
        again = _again(columns, total, dtype, found)
        if dtype == np.float16:
            out = out.astype(np.float16)
        out[found] = again
        return out
    return out.astype(dtype, copy=False)


def _again(columns: Columns, total: int, dtype: np.dtype[Any], places: Block | None) -> Block:
    """The means at `places` (all of them for None), by whole numbers."""
    kernels = load()
    parts: list[Block] = []
    for some, gathered in columns.at(places):
        values, weights = columns.with_extras(some, gathered)
        out = np.empty(some.size)
        _check(kernels.means(values, weights, total, dtype != np.float64, out))
        parts.append(out.astype(dtype))
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _total(blocks: Sequence[Block], samples: Sequence[int]) -> int:
    if not blocks or len(blocks) != len(samples):
        raise ValueError("nothing to average")
    total = sum(samples)
    if min(samples) < 1 or total >= _MOST_TOTAL:
        raise ValueError("sample counts are 1 or more, and their sum is below 2^63")
    return total


def widened(blocks: Sequence[Block]) -> list[Block]:
    """Blocks as the kernels take them: float16 as float32, which holds it, and in one piece each."""
    return _contiguous([block.astype(np.float32) if block.dtype == np.float16 else block for block in blocks])


def _contiguous(blocks: Sequence[Block]) -> list[Block]:
    """Blocks whose values lie one after another and where the processor expects them."""
    return [block if block.flags.aligned and block.flags.c_contiguous else block.copy() for block in blocks]


def _check(all_finite: bool) -> None:
    if not all_finite:
        raise NotFinite("an update has a value that is infinite or no number")

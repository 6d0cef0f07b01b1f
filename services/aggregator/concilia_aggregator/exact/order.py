"""Means of what is in the middle, element by element: medians and trimmed means, correctly rounded.

Columns are sorted by a network: the same comparisons whatever the values, so that many elements are sorted side by
side. Batcher's merge exchange, as Knuth has it (The Art of Computer Programming 3, 5.2.2, algorithm M), without the
comparisons that what is averaged does not depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from concilia_aggregator.exact import mean
from concilia_aggregator.exact.kernels import Block, load
from concilia_aggregator.exact.mean import NotFinite

_KEPT = 16384  # values that are sorted at a time: 64 KB, an eighth of a core's second cache
_LEAST, _MOST = 32, 1024  # columns


def mean_of_middle(blocks: Sequence[Block], trimmed: int) -> Block:
    """Of each element the mean over blocks without the `trimmed` largest and the `trimmed` smallest.

    Blocks are one-dimensional, of one floating dtype and length. Correctly rounded, as `exact.weighted_mean` is. Raises
    `ValueError` where nothing would be left, `NotFinite`.
    """
    count, dtype = len(blocks), blocks[0].dtype
    if not 0 <= 2 * trimmed < count:
        raise ValueError("nothing is left to average")
    first, last = trimmed, count - trimmed
    if dtype not in mean.NARROW:
        return _by_sorting(np.stack(blocks, axis=1), first, last, dtype)
    columns = mean.Columns(mean.widened(blocks), np.ones(count, np.int64))
    out = np.empty(blocks[0].size, np.float32 if dtype == np.float32 else np.float64)
    places = np.empty(out.size, np.int64)
    side = min(max(_KEPT // count, _LEAST), _MOST)
    found = load().middles(columns.addresses, network(count, first, last), first, last, out, places, side)
    if found < 0:
        raise NotFinite("an update has a value that is infinite or no number")
    result = out.astype(dtype, copy=False)
    for some, values in columns.at(places[:found]):
        result[some] = _by_sorting(values, first, last, dtype)
    return result


@lru_cache(64)
def network(count: int, first: int, last: int) -> npt.NDArray[np.int32]:
    """Pairs of positions to put in order, so that of `count` values those `first` to `last` are where they belong."""
    pairs: list[tuple[int, int]] = []
    top = 1 << max(count - 1, 1).bit_length() - 1
    p = top if count > 1 else 0
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    needed = set(range(first, last))
    kept: list[tuple[int, int]] = []
    for pair in reversed(pairs):
        if needed & set(pair):
            needed |= set(pair)
            kept.append(pair)
    return np.array(kept[::-1], np.int32).reshape(-1, 2)


def _by_sorting(values: Block, first: int, last: int, dtype: np.dtype[Any]) -> Block:
    """The same, by sorting rows of float64 whole and averaging as `exact` does what one float64 does not hold."""
    if not np.isfinite(values).all():
        raise NotFinite("an update has a value that is infinite or no number")
    bits = values.view(np.int64)
    keys = np.sort(bits ^ ((bits >> 63) & np.int64(2**63 - 1)), axis=1)
    ordered = (keys ^ ((keys >> 63) & np.int64(2**63 - 1))).view(np.float64)[:, first:last]
    return mean.mean_of_rows(np.ascontiguousarray(ordered), dtype)

"""The compiled part of exact averaging (`kernels.c`), by its addresses; calls let other threads run.

Columns are given by where their values begin: one address each, of float32 or, where `wide`, float64. `places` is room
for row numbers, which a function fills in ascending order; it returns of how many.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

Block = npt.NDArray[Any]

_FOLDER = Path(__file__).parent
_CPU = Path("/proc/cpuinfo")
_V3 = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
_LEVELS = (("x86_64_v4", _V4), ("x86_64_v3", _V3))
"""What a level of the x86-64 psABI supplement needs beside the first one's, as Linux names it."""

_RESULTS = {"mean": ctypes.c_int64, "add": ctypes.c_int64, "middles": ctypes.c_int64, "squares": ctypes.c_double}
_NOT_FINITE, _NO_MEMORY = -1, -2


def libraries() -> list[Path]:
    """The libraries that this processor can run, fastest first. Raises `ImportError` where none was built."""
    able = _abilities()
    levels = [name for name, needed in _LEVELS if needed <= able]
    found = [path for level in (*levels, "x86_64", "baseline") if (path := _FOLDER / f"kernels-{level}.so").exists()]
    if not found:
        raise ImportError("the aggregator's compiled part is not there: install the package anew, which builds it")
    return found


class Kernels:
    """The functions of one library."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name, kind in _RESULTS.items():
            getattr(self._library, f"concilia_{name}").restype = kind

    def mean(self, columns: Block, weights: Block, wide: bool, by: float, out: Block, places: Block) -> int:
        """The sum of columns times `weights` (float64), divided by `by`, into `out`: correctly rounded where that is of
        float32, rounded to odd where it is of float64.

        Each product must be exact. Rows whose sum one float64 does not hold are noted, and their mean is not there.
        """
        return int(
            self._library.concilia_mean(
                *(_at(columns), _size(columns), _at(weights), wide, ctypes.c_double(by)),
                *(_at(out), _size(out), out.itemsize == 8, _at(places)),
            )
        )

    def add(self, columns: Block, weights: Block, total: Block, places: Block) -> int:
        """The sum of float32 columns times weights into `total` (float64); else as `mean`."""
        return int(
            self._library.concilia_add(
                _at(columns), _size(columns), _at(weights), _at(total), _size(total), _at(places)
            )
        )

    def middles(
        self, columns: Block, network: Block, first: int, last: int, out: Block, places: Block, side: int
    ) -> int:
        """Each row's values (float32) sorted, those from `first` to `last` (not included) averaged, into `out`, rounded
        as in `mean`; -1 where a value is not finite. Raises `MemoryError`.

        `network`: pairs of positions (int32) that are put in order one after another, which sorts at least what is
        averaged. Rows are sorted `side` at a time, side by side.
        """
        found = int(
            self._library.concilia_middles(
                *(_at(columns), _size(columns), _at(network), ctypes.c_int64(len(network))),
                *(ctypes.c_int64(first), ctypes.c_int64(last), _at(out), _size(out), out.itemsize == 8),
                *(_at(places), ctypes.c_int64(side)),
            )
        )
        if found < _NOT_FINITE:
            raise MemoryError("no room to sort a part of the updates in")
        return found

    def squares(self, ours: Block, theirs: Block, is_difference: bool) -> float:
        """The sum of squares of a block less another of its dtype, or of the first alone: sixteen partial sums in
        float64, added in one order, so that it is one value on every machine and sixteen can be added at a time."""
        return float(
            self._library.concilia_squares(_at(ours), _at(theirs), _size(ours), is_difference, ours.itemsize == 8)
        )

    def gather(self, columns: Block, wide: bool, places: Block, values: Block) -> None:
        """Columns' values at `places`, widened, into `values` (float64, places by columns)."""
        self._library.concilia_gather(_at(columns), _size(columns), wide, _at(places), _size(places), _at(values))

    def means(self, values: Block, weights: Block, by: int, odd: bool, out: Block) -> bool:
        """Row by row the sum of `values` (float64, rows by columns) times weights, divided by `by`, into `out`, rounded
        to odd or to nearest; whether all values were finite. `by` and weights are below 2^63."""
        rows, columns = values.shape
        bad: int = self._library.concilia_means(
            *(_at(values), ctypes.c_int64(rows), ctypes.c_int64(columns), _at(weights)),
            *(ctypes.c_int64(by), odd, _at(out)),
        )
        return not bad

    def components(self, values: Block, weights: Block, places: Block, total: Block, at: Block, rest: Block) -> int:
        """Row by row the exact sum of values (float32's, as float64) times weights as float64s that do not overlap: the
        largest into `total[places]`, the others into `rest`, with their places in `at`. Returns how many others, -1
        where a value is not finite."""
        rows, columns = values.shape
        used = ctypes.c_int64()
        bad: int = self._library.concilia_components(
            *(_at(values), ctypes.c_int64(rows), ctypes.c_int64(columns), _at(weights), _at(places)),
            *(_at(total), _at(at), _at(rest), ctypes.byref(used)),
        )
        return _NOT_FINITE if bad else used.value


@cache
def load() -> Kernels:
    """The fastest library that this processor can run. Raises `ImportError`."""
    return Kernels(libraries()[0])


def _at(block: Block) -> ctypes.c_void_p:
    return ctypes.c_void_p(block.__array_interface__["data"][0])


def _size(block: Block) -> ctypes.c_int64:
    return ctypes.c_int64(block.size)


def _abilities() -> frozenset[str]:
    """What the processor says that it can do; nothing where Linux does not say it."""
    return frozenset(_flags(_CPU.read_text())) if _CPU.exists() else frozenset()


def _flags(text: str) -> Iterator[str]:
    for line in text.splitlines():
        name, _, values = line.partition(":")
        if name.strip() == "flags":
            yield from values.split()
            return

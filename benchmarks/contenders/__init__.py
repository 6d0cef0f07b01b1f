"""Who runs a round: each contender starts its own server and client processes, runs rounds, and stops them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.meter import Cost


@dataclass(frozen=True)
class Run:
    """Rounds that were run: what each took in seconds, the first one left out, and what the server used over them.

    `parts` of the cost are the server's processes; `wire` counts all bytes over the loopback interface.
    """

    seconds: tuple[float, ...]
    cost: Cost

    @property
    def rounds(self) -> int:
        """How many rounds were measured."""
        return len(self.seconds)


Contender = Callable[[int, int, bool, Path], Run]
"""Runs with so many clients and rounds, `True` for a round with no model to speak of, in an empty folder."""


class ContenderFailed(RuntimeError):
    """A contender did not come to its end; the message says where its output is."""


def seconds_of(began: list[float]) -> tuple[float, ...]:
    """Seconds of each round but the first, from the moments at which rounds began and the last one ended."""
    return tuple(after - before for before, after in itertools.pairwise(began[1:]))

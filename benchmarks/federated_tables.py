"""Means over seeds and tables from the rows of `benchmarks.federated`. Standard library only: the chart's environment
has nothing else of ours."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

METRICS = ("accuracy", "balanced_accuracy", "worst_site", "melanoma_recall", "backdoor", "lost")
CLEAN = "none"
BASELINES = ("pooled", "alone", "alone_everywhere")
SUBTLE = ("alie", "min_max")
"""Attacks under which less has to be kept."""
DOORS = ("backdoor", "replacement")
GOAL, GOAL_SUBTLE, GOAL_DOOR = 0.95, 0.85, 0.10

Key = tuple[str, str, str, float, bool]


@dataclass(frozen=True)
class Cell:
    """Each metric by seed, and the learning rates there are."""

    by_seed: Mapping[str, Mapping[str, float]]
    rates: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.by_seed)

    @property
    def mean(self) -> dict[str, float]:
        """Of each metric over seeds; not a number where no seed has one."""
        return {name: statistics.mean(each) if each else math.nan for name, each in self._values().items()}

    @property
    def deviation(self) -> dict[str, float]:
        """Standard deviation of each metric over seeds; 0 for one."""
        return {name: statistics.stdev(each) if len(each) > 1 else 0.0 for name, each in self._values().items()}

    def beside(self, other: Cell) -> Cell:
        """Of the seeds only that another has too."""
        return Cell({seed: each for seed, each in self.by_seed.items() if seed in other.by_seed}, self.rates)

    def _values(self) -> dict[str, list[float]]:
        return {name: [v for each in self.by_seed.values() if not math.isnan(v := each[name])] for name in METRICS}

    @property
    def balanced(self) -> float:
        """Balanced accuracy."""
        return self.mean["balanced_accuracy"]


def rows_of(path: Path) -> list[dict[str, str]]:
    """All whole rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


def cells(rows: Iterable[Mapping[str, str]]) -> dict[Key, Cell]:
    """By split, strategy, attack, share and whether updates were screened."""
    groups: defaultdict[Key, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        key = (row["split"], row["strategy"], row["attack"], float(row["share"]), row["screening"] == "True")
        groups[key].append(row)
    return {key: _cell(some) for key, some in groups.items()}


def _cell(some: Sequence[Mapping[str, str]]) -> Cell:
    by_seed = {row["seed"]: {name: float(row[name]) for name in METRICS} for row in some}
    return Cell(by_seed, tuple(sorted({row["rate"] for row in some})))


def label(strategy: str) -> str:
    """A strategy without its parameters."""
    return strategy.partition(":")[0]


def clean_of(found: Mapping[Key, Cell], key: Key) -> Cell:
    """The same strategy, parameters and all, without attackers, from the same seeds; screened, as clean runs are."""
    return found[key[0], key[1], CLEAN, 0.0, True].beside(found[key])


def kept(found: Mapping[Key, Cell], key: Key) -> float:
    """Balanced accuracy to that without attackers, from the same seeds."""
    return found[key].balanced / clean_of(found, key).balanced


def order(names: Iterable[str]) -> list[str]:
    """Each once, as they first come."""
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Grid:
    """Strategies by attack, of one split and share."""

    strategies: list[str]
    attacks: list[str]
    keys: dict[tuple[str, str], Key]


def grid(found: Mapping[Key, Cell], split: str, share: float, *, screened: bool = True) -> Grid:
    """What there is; strategies by label, in the order of the first attacked rows."""
    keys = {
        (label(key[1]), key[2]): key
        for key in found
        if key[0] == split and key[3] == share and key[2] != CLEAN and key[4] == screened
    }
    known = order(label(key[1]) for key in found if key[0] == split)
    attacks = order(key[2] for key in found if key[2] != CLEAN)
    return Grid(
        [name for name in known if any(pair[0] == name for pair in keys)],
        [attack for attack in attacks if any(pair[1] == attack for pair in keys)],
        keys,
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is words and whose others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])

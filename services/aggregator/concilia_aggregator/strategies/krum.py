"""Krum and Multi-Krum."""

from __future__ import annotations

import math
from collections.abc import Sequence

from concilia_aggregator.strategies.geometry import Geometry, Matrix
from concilia_aggregator.strategies.hostile import Hostile, most_hostile


class MultiKrum:
    """The mean of the `n - f` updates that have the lowest scores, sample counts ignored; for `one` that which has the
    lowest, which is Krum. A score is the sum of squared distances to the `n - f - 2` nearest other updates.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, section 4. ByzFL 0.0.11 takes the `n - f - 1` nearest (`neighbours` of the hostile are one fewer).
    """

    def __init__(self, hostile: Hostile, *, one: bool = False, neighbours_less: int = 2) -> None:
        self._hostile = hostile
        self._one = one
        self._less = neighbours_less

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`."""
        count = len(geometry)
        hostile = self._hostile.of(count, most=most_hostile(count, 2, 3))
        found = scores(geometry.squared_distances(), range(count), count - hostile - self._less)
        chosen = lowest(found, 1 if self._one else count - hostile, geometry)
        return [1 / len(chosen) if index in chosen else 0.0 for index in range(count)]


def scores(distances: Matrix, among: Sequence[int], neighbours: int) -> dict[int, float]:
    """Of some updates by index: the sum of the squared distances to so many nearest others of them, at least one."""
    found = {}
    for index in among:
        others = sorted(float(distances[index, other]) for other in among if other != index)
        found[index] = math.fsum(others[: max(neighbours, 1)])
    return found


def lowest(found: dict[int, float], count: int, geometry: Geometry) -> frozenset[int]:
    """Those of the lowest scores; of equal ones those nearest to the base, of equally near ones the first.

    Two that are each other's nearest have one score where one neighbour counts; not their order is to choose.
    """

    def place(index: int) -> tuple[float, float, int]:
        return found[index], float(geometry.gram[index, index]), index

    return frozenset(sorted(found, key=place)[:count])

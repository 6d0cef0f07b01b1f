"""Bulyan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.exact import NotFinite
from concilia_aggregator.strategies.base import Block, Folding, fold_integers
from concilia_aggregator.strategies.geometry import Geometry
from concilia_aggregator.strategies.hostile import Hostile, most_hostile
from concilia_aggregator.strategies.krum import lowest, scores


class Bulyan:
    """Of `n - 2f` updates that Krum chooses one after another, element by element the mean of the `n - 4f` values that
    are nearest to their median; sample counts ignored.

    El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, section
    4. It needs 4f + 3 updates: with fewer, fewer are taken for hostile.
    """

    def __init__(self, hostile: Hostile) -> None:
        self._hostile = hostile

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update={"proximal_mu": 0.0})

    def prepare(self, geometry: Geometry) -> Folding:
        """See `Weighing.prepare`."""
        count = len(geometry)
        hostile = self._hostile.of(count, most=most_hostile(count, 4, 3))
        return NearMedian(sorted(chosen(geometry, hostile)), count - 4 * hostile)


def chosen(geometry: Geometry, hostile: int) -> list[int]:
    """All but `2 * hostile` updates, by index, as Krum chooses them one after another."""
    distances, left = geometry.squared_distances(), list(range(len(geometry)))
    found: list[int] = []
    while len(found) < len(geometry) - 2 * hostile:
        (best,) = lowest(scores(distances, left, len(left) - hostile - 2), 1, geometry)
        found.append(best)
        left.remove(best)
    return found


class NearMedian:
    """Of some updates, element by element the mean of the values nearest to the median."""

    def __init__(self, chosen: Sequence[int], kept: int) -> None:
        self._chosen = chosen
        self._kept = kept

    def fold(self, updates: Sequence[Block], base: Block) -> Block:
        """See `Folding.fold`."""
        some = [updates[index] for index in self._chosen]
        if not np.issubdtype(base.dtype, np.floating):
            return fold_integers(some)
        values = np.sort(np.stack(some).astype(np.float64), axis=0)
        if not np.isfinite(values).all():
            raise NotFinite("an update has a value that is infinite or no number")
        middle = (values[(len(some) - 1) // 2] + values[len(some) // 2]) / 2
        # What is nearest lies together in order: from which place on its ends are least far away.
        ends = np.stack(
            [
                np.maximum(middle - values[start], values[start + self._kept - 1] - middle)
                for start in range(len(some) - self._kept + 1)
            ]
        )
        first = np.argmin(ends, axis=0)
        total = np.zeros(base.size)
        for offset in range(self._kept):
            total += np.take_along_axis(values, (first + offset)[None, :], axis=0)[0]
        return (total / self._kept).astype(base.dtype)

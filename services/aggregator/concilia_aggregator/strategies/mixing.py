"""Mixing before a robust rule: in place of updates means of some, so that honest ones come closer together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator import exact
from concilia_aggregator.strategies.base import Block, Blockwise, Folding, Weighing, fold_integers
from concilia_aggregator.strategies.combining import Combined, combination
from concilia_aggregator.strategies.geometry import Geometry
from concilia_aggregator.strategies.hostile import Hostile, most_hostile


class Mixing(Protocol):
    """Which updates are averaged with which."""

    def groups(self, geometry: Geometry) -> list[list[int]]:
        """The members of each group, by index, ascending."""
        ...


class NearestNeighbours:
    """A group for each update: it and its nearest ones, `n - f` in all.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity", AISTATS 2023, algorithm 2.
    """

    def __init__(self, hostile: Hostile) -> None:
        self._hostile = hostile

    def groups(self, geometry: Geometry) -> list[list[int]]:
        """See `Mixing.groups`."""
        count = len(geometry)
        size = count - self._hostile.of(count, most=most_hostile(count, 2, 1))
        distances = geometry.squared_distances()
        return [
            sorted(sorted(range(count), key=lambda other: (float(distances[index, other]), other))[:size])
            for index in range(count)
        ]


class Bucketing:
    """Groups of `size` updates, drawn by `seed`, in any language alike; the last one may be smaller.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, algorithm 1.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed

    def groups(self, geometry: Geometry) -> list[list[int]]:
        """See `Mixing.groups`."""
        order = sorted(range(len(geometry)), key=self._place)
        return [sorted(order[at : at + self._size]) for at in range(0, len(order), self._size)]

    def _place(self, index: int) -> bytes:
        return hashlib.sha256(f"{self._seed}|{index}".encode()).digest()


class Mixed:
    """A strategy over groups' means in place of updates."""

    def __init__(self, mixing: Mixing, inner: Blockwise | Weighing) -> None:
        """An inner strategy that is made of a rule is applied without making the means."""
        self._mixing = mixing
        self._inner = inner

    def local(self, local: LocalTraining) -> LocalTraining:
        """The inner strategy's."""
        return self._inner.local(local)

    def prepare(self, geometry: Geometry) -> Folding:
        """See `Weighing.prepare`."""
        groups = self._mixing.groups(geometry)
        mixed = geometry.mixed(groups)
        if isinstance(self._inner, Combined):
            outer = self._inner.rule.coefficients(mixed)
            parts: list[list[float]] = [[] for _ in range(len(geometry))]
            for share, some in zip(outer, groups, strict=True):
                for index in some:
                    parts[index].append(share / len(some))
            return combination([math.fsum(each) for each in parts])
        if isinstance(self._inner, Blockwise):
            return _OfMeans(groups, _Plain(self._inner, mixed.samples))
        return _OfMeans(groups, self._inner.prepare(mixed))


class _Plain:
    def __init__(self, strategy: Blockwise, samples: Sequence[int]) -> None:
        self._strategy = strategy
        self._samples = samples

    def fold(self, updates: Sequence[Block], base: Block) -> Block:
        del base
        return self._strategy.fold(updates, self._samples)


class _OfMeans:
    def __init__(self, groups: Sequence[Sequence[int]], inner: Folding) -> None:
        self._groups = groups
        self._inner = inner

    def fold(self, updates: Sequence[Block], base: Block) -> Block:
        if not np.issubdtype(base.dtype, np.floating):
            return fold_integers(updates)
        # In float64, so that a mean is not rounded to the updates' dtype on the way.
        wide = [each.astype(np.float64) for each in updates]
        means = [exact.weighted_mean([wide[index] for index in some], [1] * len(some)) for some in self._groups]
        return self._inner.fold(means, base.astype(np.float64)).astype(base.dtype)

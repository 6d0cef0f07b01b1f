"""Folding by coefficients: rules that look at updates whole and answer with a share of each.

A rule says how much of each update's difference from the base goes into the new model. Shares become whole numbers of
`UNIT`, so that the model is a weighted mean that is correctly rounded (`exact`): neither order nor machine changes a
bit. Rules whose shares are negative or come to more than the whole are added up in float64, in the order of
contributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator import exact
from concilia_aggregator.strategies.base import Block, Folding, fold_integers
from concilia_aggregator.strategies.geometry import Geometry

UNIT = 1 << 26
"""What stands for a share of 1."""


class Rule(Protocol):
    """How much of each update counts."""

    def coefficients(self, geometry: Geometry) -> list[float]:
        """The share of each update's difference from the base, in their order. What they lack to 1 is the base's."""
        ...


class Combined:
    """A strategy made of a rule."""

    def __init__(self, rule: Rule, *, first_loss: bool = False, class_counts: bool = False) -> None:
        """Whether it goes by the model's loss before hospitals train it, or by their images of each class."""
        self.rule = rule
        self._asked = {"proximal_mu": 0.0, "first_loss": first_loss, "class_counts": class_counts}

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update=self._asked)

    def prepare(self, geometry: Geometry) -> Folding:
        """See `Weighing.prepare`."""
        return combination(self.rule.coefficients(geometry))


def combination(coefficients: Sequence[float]) -> Folding:
    """Folds `base + sum(c_j * (update_j - base))`."""
    weights = [round(share * UNIT) for share in coefficients]
    rest = UNIT - sum(weights)
    if min(weights) < 0 or rest < -len(weights):
        return Affine(coefficients)
    # Shares of 1 together may miss it by what rounding each adds up to.
    return Mean(weights, max(rest, 0) if rest > len(weights) else 0)


class Mean:
    """The mean of updates and base by whole weights, correctly rounded."""

    def __init__(self, weights: Sequence[int], base: int) -> None:
        self._weights = weights
        self._base = base

    def fold(self, updates: Sequence[Block], base: Block) -> Block:
        """See `Folding.fold`."""
        if not np.issubdtype(base.dtype, np.floating):
            return fold_integers(
                [each for each, weight in zip(updates, self._weights, strict=True) if weight] or [base]
            )
        parts = [*zip(updates, self._weights, strict=True), (base, self._base)]
        counted = [(block, weight) for block, weight in parts if weight]
        return exact.weighted_mean([block for block, _ in counted], [weight for _, weight in counted])


class Affine:
    """Any combination, in float64 and in the order of contributions, rounded once at the end."""

    def __init__(self, coefficients: Sequence[float]) -> None:
        self._coefficients = coefficients

    def fold(self, updates: Sequence[Block], base: Block) -> Block:
        """See `Folding.fold`."""
        if not np.issubdtype(base.dtype, np.floating):
            return fold_integers([*updates])
        start = base.astype(np.float64)
        total = start.copy()
        for update, share in zip(updates, self._coefficients, strict=True):
            if share:
                total += (update.astype(np.float64) - start) * share
        if not np.isfinite(total).all():
            raise exact.NotFinite("an update has a value that is infinite or no number")
        return total.astype(base.dtype)


def shares(weights: Sequence[float]) -> list[float]:
    """Each divided by all together; equal shares where all are 0."""
    total = math.fsum(weights)
    return [weight / total for weight in weights] if total > 0 else [1 / len(weights)] * len(weights)

"""Coordinate-wise trimmed mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.exact import order
from concilia_aggregator.strategies.base import Block, fold_integers

SHARE = 0.1


class TrimmedMean:
    """Of each element the mean of what is left when the largest and the smallest are left out, sample counts ignored.

    Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, option II: `share` is its beta, at least the share of updates that may be hostile; of `n` updates the
    whole part of `share * n` is left out at each end.
    """

    def __init__(self, share: float | None = None) -> None:
        self._share = SHARE if share is None else share

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update={"proximal_mu": 0.0})

    def fold(self, updates: Sequence[Block], samples: Sequence[int]) -> Block:
        """See `Strategy.fold`."""
        del samples
        if not updates:
            raise ValueError("nothing to average")
        if not np.issubdtype(updates[0].dtype, np.floating):
            return fold_integers(updates)
        return order.mean_of_middle(updates, trimmed(len(updates), self._share))


def trimmed(count: int, share: float) -> int:
    """How many of so many updates are left out at each end; at least one stays."""
    return min(int(share * count), (count - 1) // 2)

"""Coordinate-wise median."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.exact import order
from concilia_aggregator.strategies.base import Block, fold_integers


class Median:
    """Of each element the median over the updates, sample counts ignored: fewer than half of them, whatever they send,
    cannot move it beyond what the others sent. The mean of the two in the middle where their number is even.

    Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, option I.
    """

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update={"proximal_mu": 0.0})

    def fold(self, updates: Sequence[Block], samples: Sequence[int]) -> Block:
        """See `Strategy.fold`."""
        del samples
        if not updates:
            raise ValueError("nothing to take the median of")
        if not np.issubdtype(updates[0].dtype, np.floating):
            return fold_integers(updates)
        return order.mean_of_middle(updates, (len(updates) - 1) // 2)

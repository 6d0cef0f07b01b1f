"""Federated averaging as it was computed before means were exact, for verifying the models of that time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.strategies.base import Block, Blockwise, fold_integers


class Ordered:
    """Another strategy whose mean is summed in float64, in the one order of contributions, rounding as it goes."""

    def __init__(self, strategy: Blockwise) -> None:
        self._strategy = strategy

    def local(self, local: LocalTraining) -> LocalTraining:
        """The other strategy's."""
        return self._strategy.local(local)

    def fold(self, updates: Sequence[Block], samples: Sequence[int]) -> Block:
        """See `Strategy.fold`."""
        if not updates or sum(samples) <= 0:
            raise ValueError("nothing to average")
        if not np.issubdtype(updates[0].dtype, np.floating):
            return fold_integers(updates)
        total = np.zeros(updates[0].shape, np.float64)
        product = np.empty_like(total)
        for update, count in zip(updates, samples, strict=True):
            np.multiply(update, float(count), out=product, dtype=np.float64)
            total += product
        total /= float(sum(samples))
        return total.astype(updates[0].dtype)

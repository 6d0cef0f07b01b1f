"""Federated averaging."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.strategies.base import Block, fold_integers


class FedAvg:
    """The mean of the updates weighted by their samples.

    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, algorithm 1.

    Sums in float64: a float32 weight times a sample count below 2^29 is exact there, so only additions round, in the
    one order of contributions.
    """

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update={"proximal_mu": 0.0})

    def fold(self, updates: Sequence[Block], samples: Sequence[int]) -> Block:
        """See `Strategy.fold`. Raises `ValueError` where there is nothing to average."""
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

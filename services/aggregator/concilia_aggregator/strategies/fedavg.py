"""Federated averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator import exact
from concilia_aggregator.exact import Sum
from concilia_aggregator.strategies.base import Block, fold_integers


class FedAvg:
    """The mean of the updates weighted by their samples, correctly rounded (`exact`).

    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, algorithm 1.
    """

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update={"proximal_mu": 0.0})

    def fold(self, updates: Sequence[Block], samples: Sequence[int]) -> Block:
        """See `Strategy.fold`."""
        if not updates:
            raise ValueError("nothing to average")
        if not np.issubdtype(updates[0].dtype, np.floating):
            return fold_integers(updates)
        return exact.weighted_mean(updates, samples)

    def sum(self, updates: Sequence[Block], samples: Sequence[int]) -> Sum:
        """See `Additive.sum`."""
        return exact.weighted_sum(updates, samples)

    def total(self, sums: Sequence[Sum], samples: int, dtype: np.dtype[Any]) -> Block:
        """See `Additive.total`."""
        return exact.mean_of(sums, samples, dtype)

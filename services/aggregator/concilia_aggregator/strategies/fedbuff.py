"""Buffered asynchronous aggregation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from concilia_aggregator.strategies.fedavg import FedAvg

UNIT = 1 << 16
"""The weight of an update that is not late: weights are whole numbers, so that the mean is exact."""


class FedBuff(FedAvg):
    """The base plus the mean of the buffered updates' differences from it, each scaled by 1 / sqrt(1 + staleness):
    `base + sum(s(tau_i) * (update_i - base)) / K`, K the number of updates. Sample counts do not weigh.

    Computed as one weighted mean, correctly rounded (`exact`): each update has its `weight`, and the base what the
    updates' weights lack to K units (`base_weight`). So neither order nor grouping changes a bit.

    Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
    AISTATS 2022, algorithm 1, its scaling by staleness of section 5, and a server learning rate of 1.
    """


def weight(staleness: int) -> int:
    """`UNIT / sqrt(1 + staleness)`, to the nearest whole number: 65536 for 0, and less the more rounds it is late.

    In whole numbers, so that it is the same on every machine. Raises `ValueError` where it is negative.
    """
    if staleness < 0:
        raise ValueError("an update cannot be earlier than its round")
    return (math.isqrt(4 * UNIT * UNIT // (1 + staleness)) + 1) // 2


def base_weight(weights: Sequence[int]) -> int:
    """The base's weight beside those of the updates: 0 where none is late."""
    return len(weights) * UNIT - sum(weights)

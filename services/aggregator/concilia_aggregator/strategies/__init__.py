"""Aggregation strategies: one a file, its paper cited, over blocks.

A strategy sees one block of one tensor at a time, so that memory does not grow with hospitals or model; some look
before at how the updates lie to each other (`Weighing`), some remember from round to round (`Stateful`), one adds noise
(`Noised`). The same code folds in the service and in the verifier.
"""

from __future__ import annotations

from concilia_aggregator.strategies.base import Additive, Blockwise, Noised, Stateful, Strategy, Weighing
from concilia_aggregator.strategies.fedavg import FedAvg
from concilia_aggregator.strategies.fedbuff import FedBuff
from concilia_aggregator.strategies.fedprox import FedProx
from concilia_aggregator.strategies.median import Median
from concilia_aggregator.strategies.ordered import Ordered
from concilia_aggregator.strategies.registry import Setting, StrategyUnknown, installed, make
from concilia_aggregator.strategies.trimmed_mean import TrimmedMean

__all__ = [
    "Additive",
    "Blockwise",
    "FedAvg",
    "FedBuff",
    "FedProx",
    "Median",
    "Noised",
    "Ordered",
    "Setting",
    "Stateful",
    "Strategy",
    "StrategyUnknown",
    "TrimmedMean",
    "Weighing",
    "installed",
    "make",
]

"""Aggregation strategies: one a file, its paper cited, over blocks.

A strategy sees one block of one tensor at a time, so that memory does not grow with hospitals or model. The same code
folds in the service and in the verifier.
"""

from __future__ import annotations

from concilia_kit.wire.jobs import Strategy as StrategySpec
from concilia_kit.wire.jobs import StrategyName

from concilia_aggregator.strategies.base import Additive, Strategy
from concilia_aggregator.strategies.fedavg import FedAvg
from concilia_aggregator.strategies.fedbuff import FedBuff
from concilia_aggregator.strategies.fedprox import FedProx
from concilia_aggregator.strategies.median import Median
from concilia_aggregator.strategies.ordered import Ordered
from concilia_aggregator.strategies.trimmed_mean import TrimmedMean


def make(spec: StrategySpec, *, ordered: bool = False) -> Strategy:
    """The strategy that a job names; `ordered` as it was computed before means were exact (see `Ordered`)."""
    match spec.name:
        case StrategyName.FEDAVG:
            return Ordered(FedAvg()) if ordered else FedAvg()
        case StrategyName.FEDPROX:
            prox = FedProx(spec.proximal_mu)
            return Ordered(prox) if ordered else prox
        case StrategyName.MEDIAN:
            return Median()
        case StrategyName.TRIMMED_MEAN:
            return TrimmedMean(spec.trim)
        case StrategyName.FEDBUFF:
            return FedBuff()


__all__ = ["Additive", "FedAvg", "FedBuff", "FedProx", "Median", "Ordered", "Strategy", "TrimmedMean", "make"]

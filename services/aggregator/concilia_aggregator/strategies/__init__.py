"""Aggregation strategies: one a file, its paper cited, pure NumPy over blocks.

A strategy sees one block of one tensor at a time, so that memory does not grow with hospitals or model. The same code
folds in the service and in the verifier.
"""

from __future__ import annotations

from concilia_kit.wire.jobs import Strategy as StrategySpec
from concilia_kit.wire.jobs import StrategyName

from concilia_aggregator.strategies.base import Strategy
from concilia_aggregator.strategies.fedavg import FedAvg
from concilia_aggregator.strategies.fedprox import FedProx


def make(spec: StrategySpec) -> Strategy:
    """The strategy that a job names."""
    match spec.name:
        case StrategyName.FEDAVG:
            return FedAvg()
        case StrategyName.FEDPROX:
            return FedProx(spec.proximal_mu)


__all__ = ["FedAvg", "FedProx", "Strategy", "make"]

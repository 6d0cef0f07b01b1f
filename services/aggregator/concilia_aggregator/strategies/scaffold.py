"""SCAFFOLD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator import exact
from concilia_aggregator.strategies.base import Block, Stepping, fold_integers
from concilia_aggregator.strategies.fednova import reaches
from concilia_aggregator.strategies.geometry import Geometry


class Scaffold:
    """Hospitals correct each local step by `c - c_i`, the consortium's control variate less their own, so that uneven
    data does not let them drift apart; the model is the plain mean of the updates.

    Hospital i keeps `c_i' = c_i - c + (base - update_i) / t_i`, its reach `t_i` being, for plain steps, their number
    times the learning rate (option II). What the server adds to `c` is the mean of what they added to theirs, times
    their share of all: `c' = c + S / N * (mean((base - update_i) / t_i) - c)`. It follows from the updates and their
    reach: nothing more than in FedAvg is sent to the server.

    Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    ICML 2020, algorithm 1, with a global step size of 1.
    """

    state: tuple[str, ...] = ("c",)

    def __init__(self, hospitals: int) -> None:
        """`hospitals`: N, of whom those of a round are some."""
        self._hospitals = hospitals

    def local(self, local: LocalTraining) -> LocalTraining:
        """Local training with control variates."""
        return local.model_copy(update={"proximal_mu": 0.0, "control": True})

    def remember(self, geometry: Geometry, round_: int) -> Stepping:
        """See `Stateful.remember`. Raises `ValueError` where a hospital does not say its reach."""
        del round_
        return _Step(reaches(geometry), min(len(geometry) / max(self._hospitals, 1), 1.0))


class _Step:
    def __init__(self, reaches: Sequence[float], share: float) -> None:
        self._reaches = reaches
        self._share = share

    def step(self, updates: Sequence[Block], base: Block, state: Sequence[Block]) -> tuple[Block, list[Block]]:
        if not np.issubdtype(base.dtype, np.floating):
            return fold_integers(updates), []
        start, c = base.astype(np.float64), state[0].astype(np.float64)
        ways = [(start - each.astype(np.float64)) / reach for each, reach in zip(updates, self._reaches, strict=True)]
        drift = exact.weighted_mean(ways, [1] * len(ways))
        kept = c + self._share * (drift - c)
        return exact.weighted_mean(updates, [1] * len(updates)), [kept.astype(np.float32)]

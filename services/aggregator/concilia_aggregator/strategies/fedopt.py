"""Optimisers at the server: the mean of the updates' differences from the base is taken for a gradient.

All with `delta` the mean by samples less the base, element by element, in float64; state is kept in float32, and begins
with zeros. Integers are as in every other strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator import exact
from concilia_aggregator.strategies.base import Block, Stepping, fold_integers
from concilia_aggregator.strategies.geometry import Geometry

Wide = npt.NDArray[np.float64]


class Optimiser(Protocol):
    """One rule of Reddi et al. or Hsu et al."""

    state: tuple[str, ...]

    def step(self, delta: Wide, state: Sequence[Wide]) -> tuple[Wide, list[Wide]]:
        """What is added to the base, and the new state."""
        ...


class FedAvgM:
    """Momentum: `v = beta * v + delta`, and `rate * v` is added.

    Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019
    (arXiv:1909.06335), section 4.3.
    """

    state: tuple[str, ...] = ("v",)

    def __init__(self, rate: float, beta: float) -> None:
        self._rate = rate
        self._beta = beta

    def step(self, delta: Wide, state: Sequence[Wide]) -> tuple[Wide, list[Wide]]:
        """See `Optimiser.step`."""
        v = self._beta * state[0] + delta
        return self._rate * v, [v]


class _Adaptive:
    """`rate * m / (sqrt(v) + tau)` is added, with `m = beta1 * m + (1 - beta1) * delta`; `v` begins with `tau^2`, of
    which the state keeps what is more.

    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021,
    algorithm 2. Flower 1.x starts `v` with 0, and corrects FedAdam's rate for a bias, neither of which the paper does.
    """

    state: tuple[str, ...] = ("m", "v")

    def __init__(self, rate: float, beta1: float, beta2: float, tau: float) -> None:
        self._rate = rate
        self._beta1 = beta1
        self._beta2 = beta2
        self._tau = tau

    def step(self, delta: Wide, state: Sequence[Wide]) -> tuple[Wide, list[Wide]]:
        """See `Optimiser.step`."""
        start = self._tau * self._tau
        m = self._beta1 * state[0] + (1 - self._beta1) * delta
        v = np.maximum(self._second(state[1] + start, delta * delta), 0.0)
        return self._rate * m / (np.sqrt(v) + self._tau), [m, v - start]

    def _second(self, v: Wide, square: Wide) -> Wide:
        raise NotImplementedError


class FedAdam(_Adaptive):
    """`v = beta2 * v + (1 - beta2) * delta^2`."""

    def _second(self, v: Wide, square: Wide) -> Wide:
        return self._beta2 * v + (1 - self._beta2) * square


class FedYogi(_Adaptive):
    """`v = v - (1 - beta2) * delta^2 * sign(v - delta^2)`."""

    def _second(self, v: Wide, square: Wide) -> Wide:
        result: Wide = v - (1 - self._beta2) * square * np.sign(v - square)
        return result


class FedAdagrad(_Adaptive):
    """`v = v + delta^2`, without `beta2`; the paper has `beta1` 0."""

    def _second(self, v: Wide, square: Wide) -> Wide:
        return v + square


class Optimised:
    """A strategy made of an optimiser."""

    def __init__(self, optimiser: Optimiser) -> None:
        self._optimiser = optimiser

    @property
    def state(self) -> tuple[str, ...]:
        """See `Stateful.state`."""
        return self._optimiser.state

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update={"proximal_mu": 0.0})

    def remember(self, geometry: Geometry, round_: int) -> Stepping:
        """See `Stateful.remember`."""
        del round_
        return _Step(self._optimiser, geometry.samples)


class _Step:
    def __init__(self, optimiser: Optimiser, samples: Sequence[int]) -> None:
        self._optimiser = optimiser
        self._samples = samples

    def step(self, updates: Sequence[Block], base: Block, state: Sequence[Block]) -> tuple[Block, list[Block]]:
        if not np.issubdtype(base.dtype, np.floating):
            return fold_integers(updates), []
        start = base.astype(np.float64)
        mean = exact.weighted_mean([each.astype(np.float64) for each in updates], self._samples)
        added, kept = self._optimiser.step(mean - start, [each.astype(np.float64) for each in state])
        return (start + added).astype(base.dtype), [each.astype(np.float32) for each in kept]

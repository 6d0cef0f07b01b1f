"""Federated averaging with noise at the aggregator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.strategies.base import Block, Noising
from concilia_aggregator.strategies.geometry import Geometry

BITS = 44
"""An update's elements become whole numbers of `radius * 2**-44`, whose sum over fewer than `MOST` updates int64
holds."""
MOST = 1 << 17
SLACK = 2.0**-28
"""Of the radius, that updates are cut below it: what the Gram matrix leaves out of a length (2^-34 of it), and what
rounding to whole numbers adds to one, sqrt(d) * 2^-45 of the radius, d being 2^32 elements at most."""
COARSE = 12
"""Bits below the noise's standard deviation that are told."""


class DPFedAvg:
    """The mean of updates whose difference from the base is at most `radius` long, each counting alike whatever its
    samples, with Gaussian noise of `noise` times the radius on their sum, on every element of every floating tensor.
    Integers stay the base's: the largest would tell whose it is.

    McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018, algorithm 1,
    with equal weights, flat clipping and all hospitals in each round.

    One hospital's update, replaced by any other, moves the sum by twice the radius at most. What is told of the sum is
    a whole number: differences are rounded to whole numbers before they are added up, the noise likewise, and the total
    to 2^-12 of the noise's standard deviation. So their order changes no bit, and what places float64 has tells nothing
    (Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012). What follows is the
    base, which is known, with that number's multiple added; rounding after the noise costs no privacy.
    """

    def __init__(self, radius: float, noise: float) -> None:
        self._radius = radius
        self._noise = noise

    def local(self, local: LocalTraining) -> LocalTraining:
        """Plain local training: no proximal term."""
        return local.model_copy(update={"proximal_mu": 0.0})

    def noised(self, geometry: Geometry) -> Noising:
        """See `Noised.noised`. Raises `ValueError` for too many updates."""
        if len(geometry) >= MOST:
            raise ValueError(f"dp_fedavg adds up fewer than {MOST} updates")
        room = self._radius * (1 - SLACK)
        shorter = [1.0 if norm <= room else room / norm for norm in geometry.norms()]
        return _Sum(self._radius, self._noise, shorter)


class _Sum:
    def __init__(self, radius: float, noise: float, shorter: Sequence[float]) -> None:
        self._unit = math.ldexp(radius, -BITS)
        self._shorter = shorter
        self._noise = math.ldexp(noise, BITS)
        self._bits = math.frexp(self._noise)[1] - 1 - COARSE

    def fold(self, updates: Sequence[Block], base: Block, gaussians: npt.NDArray[np.float64]) -> Block:
        """See `Noising.fold`."""
        start = base.astype(np.float64)
        total = np.rint(gaussians * self._noise).astype(np.int64)
        for update, share in zip(updates, self._shorter, strict=True):
            if share:
                total += np.rint((update.astype(np.float64) - start) * (share / self._unit)).astype(np.int64)
        total += 1 << (self._bits - 1)
        total >>= self._bits
        mean = total.astype(np.float64) * (math.ldexp(self._unit, self._bits) / len(updates))
        bounds = np.finfo(base.dtype)
        return np.asarray(np.clip(start + mean, float(bounds.min), float(bounds.max)).astype(base.dtype))

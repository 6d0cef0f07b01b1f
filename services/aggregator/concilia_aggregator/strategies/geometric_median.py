"""The geometric median."""

from __future__ import annotations

import math

from concilia_aggregator.strategies.combining import shares
from concilia_aggregator.strategies.geometry import Geometry

STEPS = 32
SMOOTHING = 1e-6


class GeometricMedian:
    """The point with the least sum of distances to the updates, each weighted by its samples (RFA), or all alike.

    By smoothed Weiszfeld steps from the base: each is a mean by `weight / max(smoothing, distance)`. The paper finds 3
    steps enough where each is a round of messages; here one costs n squared multiplications.

    Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 70, 2022, algorithm 2.
    """

    def __init__(self, *, by_samples: bool = True, steps: int = STEPS, smoothing: float = SMOOTHING) -> None:
        self._by_samples = by_samples
        self._steps = steps
        self._smoothing = smoothing

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`."""
        weights = shares(geometry.samples if self._by_samples else [1] * len(geometry))
        found = [0.0] * len(geometry)
        for _ in range(self._steps):
            distances = [math.sqrt(square) for square in geometry.squared_distances_to(found)]
            found = shares([weight / max(self._smoothing, far) for weight, far in zip(weights, distances, strict=True)])
        return found

"""Centred clipping."""

from __future__ import annotations

import math
import statistics

from concilia_aggregator.strategies.geometry import Geometry

STEPS = 3


class CentredClipping:
    """From the base, again and again, the mean of what leads from there to the updates, each way at most `radius` long;
    sample counts ignored. Without a radius it is, at each step, the median of the ways' lengths.

    Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, algorithm 2; what they
    keep of the round before is here the base, from which all differences are.
    """

    def __init__(self, radius: float | None = None, steps: int = STEPS) -> None:
        self._radius = radius
        self._steps = steps

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`."""
        count = len(geometry)
        found = [0.0] * count
        for _ in range(self._steps):
            ways = [math.sqrt(square) for square in geometry.squared_distances_to(found)]
            radius = statistics.median(ways) if self._radius is None else self._radius
            kept = [(1.0 if way <= radius else radius / way) / count for way in ways]
            left = 1.0 - math.fsum(kept)
            found = [share * left + more for share, more in zip(found, kept, strict=True)]
        return found

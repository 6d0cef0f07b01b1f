"""Norm clipping."""

from __future__ import annotations

import statistics

from concilia_aggregator.strategies.combining import shares
from concilia_aggregator.strategies.geometry import Geometry


class NormClipping:
    """FedAvg of updates whose difference from the base is at most `radius` long: longer ones are shortened to that.
    Without a radius it is the median of the lengths.

    Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019 (arXiv:1911.07963), section 5.
    """

    def __init__(self, radius: float | None = None) -> None:
        self._radius = radius

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`."""
        norms = geometry.norms()
        radius = statistics.median(norms) if self._radius is None else self._radius
        return [
            share * (1.0 if norm <= radius else radius / norm)
            for share, norm in zip(shares(geometry.samples), norms, strict=True)
        ]

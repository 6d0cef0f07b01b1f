"""FedNova."""

from __future__ import annotations

import math

from concilia_aggregator.strategies.combining import shares
from concilia_aggregator.strategies.geometry import Geometry


class FedNova:
    """FedAvg of differences by how far local training reached, as far as it reached on average: a hospital that took
    more steps than others does not pull the model further than its samples say.

    With `p_i` the share of samples and `t_i` the reach: `base + (sum p_i t_i) * sum p_i (update_i - base) / t_i`.

    Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization", NeurIPS 2020, equation 3; the reach is their `|a_i|_1`, whatever the momentum and the rates were.
    """

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`. Raises `ValueError` where a hospital does not say its reach."""
        found = reaches(geometry)
        parts = shares(geometry.samples)
        whole = math.fsum(part * reach for part, reach in zip(parts, found, strict=True))
        return [part * whole / reach for part, reach in zip(parts, found, strict=True)]


def reaches(geometry: Geometry) -> list[float]:
    """Of each update. Raises `ValueError` where a hospital does not say it."""
    found = [fact.reach or 0.0 for fact in geometry.facts]
    if not all(0 < reach < math.inf for reach in found):
        raise ValueError("the strategy needs every hospital's reach of local training")
    return found

"""FLTrust."""

from __future__ import annotations

import math

from concilia_aggregator.strategies.geometry import Geometry


class FLTrust:
    """The mean of the updates by how much they point where a trusted one does, each made as long as that one: weights
    are the cosines between them, or 0 where negative. Where none is left the base stays.

    Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021, equations 3
    to 5. There the server trains on images of its own; here a hospital that the job names does (`root`), and its
    update says the direction and the length without being averaged itself. Where it is not among them, or is the only
    one, the base stays.
    """

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`."""
        count, root = len(geometry), geometry.root
        if root is None:
            return [0.0] * count
        norms = geometry.norms()
        trusted = norms[root]
        trust = [0.0] * count
        for index in range(count):
            if index != root and norms[index] > 0 and trusted > 0:
                trust[index] = max(float(geometry.gram[index, root]) / (norms[index] * trusted), 0.0)
        total = math.fsum(trust)
        if total == 0:
            return [0.0] * count
        return [each / total * (trusted / norms[index]) if each else 0.0 for index, each in enumerate(trust)]

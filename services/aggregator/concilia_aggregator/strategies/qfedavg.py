"""q-FedAvg."""

from __future__ import annotations

import math
from decimal import Context, Decimal

from concilia_aggregator.strategies.geometry import Geometry

_TINY = 1e-10
_PRECISION = Context(prec=40)


class QFedAvg:
    """Fair averaging: hospitals on whose images the model does worse count for more, and the more so the larger `q`.

    With `F_k` hospital k's loss before it trained, `L` the inverse of the local learning rate and `d_k` its difference:
    `base + sum(L F_k^q d_k) / sum(q F_k^(q-1) |L d_k|^2 + L F_k^q)`. Sample counts do not weigh.

    Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, algorithm 2.
    """

    def __init__(self, q: float, learning_rate: float) -> None:
        self._q = q
        self._lipschitz = 1.0 / learning_rate

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`. Raises `ValueError` where a hospital does not say its loss."""
        q, lipschitz = self._q, self._lipschitz
        losses = []
        for fact in geometry.facts:
            if fact.loss is None or fact.loss < 0:
                raise ValueError("q-FedAvg needs every hospital's loss before it trained")
            losses.append(fact.loss + _TINY)
        raised = [_power(loss, q) for loss in losses]
        steps = []
        for index, (loss, powered) in enumerate(zip(losses, raised, strict=True)):
            square = lipschitz * lipschitz * max(float(geometry.gram[index, index]), 0.0) if q else 0.0
            steps.append(q * _power(loss, q - 1) * square + lipschitz * powered)
        total = math.fsum(steps)
        return [lipschitz * powered / total for powered in raised]


def _power(value: float, exponent: float) -> float:
    """`value` to the power of `exponent`, correctly rounded: libraries' powers differ from machine to machine."""
    return float(_PRECISION.power(Decimal(value), Decimal(exponent)))

"""Federated averaging with a proximal term at the hospitals."""

from __future__ import annotations

from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.strategies.fedavg import FedAvg


class FedProx(FedAvg):
    """FedAvg whose hospitals add mu / 2 * ||w - w_global||^2 to their loss, which keeps uneven hospitals together.

    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    algorithm 2. The server's part is FedAvg's.
    """

    def __init__(self, proximal_mu: float) -> None:
        self._proximal_mu = proximal_mu

    def local(self, local: LocalTraining) -> LocalTraining:
        """Local training with this strategy's mu."""
        return local.model_copy(update={"proximal_mu": self._proximal_mu})

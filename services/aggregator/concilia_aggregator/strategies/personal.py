"""Averaging of what is common, where each hospital keeps some tensors to itself."""

from __future__ import annotations

from concilia_kit.wire.training import LocalTraining, Personal

from concilia_aggregator.strategies.fedavg import FedAvg


class PersonalAvg(FedAvg):
    """FedAvg of all tensors but some, with which each hospital goes on from round to round. Hospitals send the model's
    own for those, so that the model keeps them and nobody sees theirs.

    Tensors of batch normalisation: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via
    Local Batch Normalization", ICLR 2021. Those of the last layer: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting
    Shared Representations for Personalized Federated Learning", ICML 2021 (FedRep), whose head is trained alone for
    some epochs first; here both are trained together, as in Arivazhagan, Aggarwal, Singh, Choudhary, "Federated
    Learning with Personalization Layers", 2019 (arXiv:1912.00818).
    """

    def __init__(self, personal: Personal) -> None:
        self._personal = personal

    def local(self, local: LocalTraining) -> LocalTraining:
        """Local training that keeps some tensors."""
        return local.model_copy(update={"proximal_mu": 0.0, "personal": self._personal})

"""What local training minimises, and how often it sees which class: how class imbalance is met, labels are smoothed and
images mixed.

Pure, apart from torch's global random generator, which mixing draws from.
"""

from __future__ import annotations

import torch
from concilia_kit import class_shares
from concilia_kit.wire.training import Balance, LocalTraining
from torch import Tensor, nn

REPETITION = 0.99  # b: after about a hundred images of a class, another one adds little


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Loss weights w_c proportional to (1 - b) / (1 - b^n_c) with b = `REPETITION`, scaled to a mean of 1 over the
    classes that are there; 0 for absent classes. n_c: images of class c.

    Unlike 1 / n_c, it keeps the two images of a rare class from steering every batch that they are in.
    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (2019).
    """
    counts = torch.bincount(labels, minlength=classes).double()
    weights = torch.where(counts > 0, (1 - REPETITION) / (1 - REPETITION**counts), 0.0)
    return (weights * (counts.count_nonzero() / weights.sum())).float()


def sampling_weights(labels: Tensor, classes: int) -> Tensor:
    """The weight with which each image is drawn, 1 / n_c: every class that is there comes equally often."""
    return 1 / torch.bincount(labels, minlength=classes).double()[labels]


def logit_adjustment(labels: Tensor, classes: int) -> Tensor:
    """What is added to the logits in training, log(n_c / n): the network learns what speaks for a class beside how
    often it comes, and hospitals with other shares of the classes learn the same. A class without any is taken to have
    `class_shares.ABSENT` images: what a hospital never sees it hardly ever pushes down.

    Sources: Menon et al., "Long-tail learning via logit adjustment" (ICLR 2021), equation 10 with tau = 1; between
    hospitals Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration" (ICML 2022).
    """
    counts = torch.bincount(labels, minlength=classes).double().clamp(min=class_shares.ABSENT)
    return torch.log(counts / counts.sum()).float()


class Objective:
    """The loss of a batch of logits (n, classes), in nats."""

    def __init__(self, local: LocalTraining, labels: Tensor, classes: int, device: torch.device) -> None:
        """`labels`: of all the hospital's training images."""
        weights = class_weights(labels, classes).to(device) if local.balance is Balance.LOSS else None
        self._loss = nn.CrossEntropyLoss(weight=weights, label_smoothing=local.label_smoothing)
        adjusted = local.balance is Balance.LOGIT
        self._adjustment = logit_adjustment(labels, classes).to(device) if adjusted else None
        self._alpha = local.mixup

    def mix(self, inputs: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """The inputs of a batch, each with a part of another one; whose, and how much is its own.

        Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018).
        """
        if not self._alpha:
            return inputs, None, 1.0
        own = float(torch.distributions.Beta(self._alpha, self._alpha).sample())
        others = torch.randperm(len(inputs))
        return inputs.mul(own).add_(inputs[others], alpha=1 - own), others, own

    def __call__(self, logits: Tensor, targets: Tensor, others: Tensor | None = None, own: float = 1.0) -> Tensor:
        """The loss where `others` and `own` say what was mixed in."""
        adjusted = logits if self._adjustment is None else logits + self._adjustment
        loss: Tensor = self._loss(adjusted, targets)
        return loss if others is None else loss * own + self._loss(adjusted, targets[others]) * (1 - own)


def order(labels: Tensor, balance: Balance, classes: int, generator: torch.Generator) -> Tensor:
    """An epoch's images: each once, or drawn with replacement so that classes come equally often."""
    if balance is Balance.SAMPLING:
        weights = sampling_weights(labels, classes)
        return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
    return torch.randperm(len(labels), generator=generator)

"""How many of each class a hospital has, told from its update: property inference.

Ateniese et al., "Hacking Smart Machines with Smarter Ones" (2015); Melis, Song, De Cristofaro, Shmatikov, "Exploiting
Unintended Feature Leakage in Collaborative Learning" (IEEE S&P 2019). The attacker has pictures of its own, trains
hospitals of all kinds of mixtures on them by the very task, and fits what their updates say of the mixture: the last
layer's biases move by how much more often a class was there than the model had thought.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from concilia_client_node import networks, private_training, training
from concilia_client_node.augmentation import as_input
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import Tensors, mix
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import LocalTraining
from torch import nn

from benchmarks.privacy_attacks.membership import part
from benchmarks.privacy_attacks.payload import DEVICE

Floats = npt.NDArray[np.float64]
_RIDGE = 1e-3


@dataclass(frozen=True)
class Hospital:
    """What an attacker wants to know of a hospital, and its update: shares of classes (classes,), tensors by name."""

    shares: Floats
    tensors: Tensors


def hospitals(
    pictures: Pictures,
    base: nn.Module,
    local: LocalTraining,
    count: int,
    images: int,
    evenness: float,
    seed: int,
    privacy: Privacy | None = None,
) -> list[Hospital]:
    """So many hospitals with so many of the pictures each, mixed by a Dirichlet distribution, that train the base."""
    generator = np.random.default_rng(seed)
    labels = np.array(pictures.labels)
    classes = len(pictures.classification.classes)
    there = [np.flatnonzero(labels == label) for label in range(classes)]
    found = []
    for number in range(count):
        wanted = generator.multinomial(images, generator.dirichlet(np.full(classes, evenness)))
        rows = np.concatenate(
            [generator.choice(own, size) for own, size in zip(there, wanted, strict=True) if size and len(own)]
        )
        some = part(pictures, rows)
        # Each picture is a lesion of its own here: where one was drawn twice, noise would be on fewer.
        some = Pictures(some.images, some.labels, tuple(map(str, range(len(rows)))), some.classification)
        network = copy.deepcopy(base)
        if privacy is None:
            training.train(network, some, local, mix(seed, number), DEVICE)
        else:
            private_training.train(network, some, local, privacy, DEVICE)
        shares = np.bincount(labels[rows], minlength=classes) / len(rows)
        found.append(Hospital(shares, {name: each.copy() for name, each in networks.tensors(network).items()}))
    return found


class Attacker:
    """Fits what updates say of class shares, by ridge regression on how much more they take the attacker's mean picture
    of each class for each class than the base did."""

    def __init__(self, base: nn.Module, own: Pictures, shadows: Sequence[Hospital]) -> None:
        labels = torch.tensor(own.labels)
        self._network = copy.deepcopy(base).eval()
        means = [own.images[labels == label].float().mean(0) for label in sorted(set(own.labels))]
        self._probes = as_input(torch.stack(means), own.classification)
        self._before = self._logits(networks.tensors(base))
        told = np.stack([self._features(each.tensors) for each in shadows])
        shares = np.stack([each.shares for each in shadows])
        self.guess: Floats = shares.mean(0)
        self._mean, self._scale = told.mean(0), told.std(0) + 1e-12
        standard = (told - self._mean) / self._scale
        gram = standard.T @ standard + _RIDGE * len(told) * np.eye(standard.shape[1])
        self._weights: Floats = np.linalg.solve(gram, standard.T @ (shares - self.guess))

    def __call__(self, tensors: Tensors) -> Floats:
        """Shares of classes (classes,) that an update speaks of: none below nothing, one together."""
        standard = (self._features(tensors) - self._mean) / self._scale
        found = np.clip(self.guess + standard @ self._weights, 0, None)
        shares: Floats = found / found.sum() if found.sum() > 0 else self.guess
        return shares

    def _features(self, tensors: Tensors) -> Floats:
        return (self._logits(tensors) - self._before).ravel()

    def _logits(self, tensors: Tensors) -> Floats:
        self._network.load_state_dict({name: torch.from_numpy(np.asarray(each)) for name, each in tensors.items()})
        with torch.inference_mode():
            logits: Floats = self._network(self._probes).double().numpy()
        return logits


def error(attacker: Callable[[Tensors], Floats], told: Sequence[Tensors], victims: Sequence[Hospital]) -> float:
    """Mean error of a class's share, over classes and hospitals, of what an attacker makes of what it is `told` of
    each."""
    return float(np.mean([np.abs(attacker(each) - of.shares) for each, of in zip(told, victims, strict=True)]))


def error_of_guess(guess: Floats, victims: Sequence[Hospital]) -> float:
    """The same of who has seen no update."""
    return float(np.mean([np.abs(guess - of.shares) for of in victims]))


def mean(some: Sequence[Hospital]) -> Tensors:
    """What is left of a cohort of hospitals that weigh the same, in the sum."""
    names = some[0].tensors
    return {name: np.mean([each.tensors[name].astype(np.float64) for each in some], axis=0) for name in names}

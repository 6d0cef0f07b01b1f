"""Membership and class shares, told from heads on frozen features: what is trained, by which tasks, what comes of it.

Tasks are given here with their reasons: the control of each attack is a task from which much can be told, and the same
task is attacked with protection.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from concilia_client_node import networks
from concilia_client_node.dataset import Folder
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import Tensors
from concilia_kit import tensorfile
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import Balance, LocalTraining
from torch import nn

from benchmarks import features
from benchmarks.privacy_attacks import membership, payload, prevalence
from benchmarks.privacy_attacks.membership import Caught, part

Build = Callable[[int], nn.Module]
EPSILON = 8.0


def task(epochs: int, rate: float = 0.03) -> LocalTraining:
    """A round of a head: plain, without weights for classes, in batches of 32."""
    return LocalTraining(
        epochs=epochs,
        batch_size=32,
        learning_rate=rate,
        weight_decay=0.0,
        balance=Balance.NONE,
        augment=False,
    )


def featured(folder: Folder, weights: Path | None, size: int, cache: Path) -> Pictures:
    """Every picture's features, in the form of pictures (`benchmarks.features`)."""
    found = features.cached(folder, weights, size, cache, 1)
    some = [each for each in folder.pictures if each.image in found.positions]
    return Pictures(
        found.of(some), tuple(each.label for each in some), tuple(each.lesion for each in some), folder.classification
    )


def some_lesions(pictures: Pictures, count: int, seed: int) -> Pictures:
    """All pictures of so many random lesions, or of all that there are."""
    names = sorted(set(pictures.lesions))
    chosen = {names[at] for at in np.random.default_rng(seed).permutation(len(names))[:count]}
    return part(pictures, np.flatnonzero([each in chosen for each in pictures.lesions]))


@dataclass(frozen=True)
class Membership:
    """One row: what was trained and how, and how well members are told."""

    name: str
    caught: Caught
    noise: float | None = None


def memberships(
    pictures: Pictures, build: Build, models: int, epochs: int, few: int, seed: int, epsilons: Sequence[float]
) -> list[Membership]:
    """The overfitted control, the same task for `few` epochs, and the control with privacy; each on a half of the
    lesions."""
    lesions = len(set(pictures.lesions)) // 2
    local = task(epochs)
    found = [
        Membership(f"{each} epochs", membership.attack(pictures, build, task(each), models, seed))
        for each in dict.fromkeys((epochs, few))
    ]
    for epsilon in epsilons:
        privacy = payload.privacy_for(epsilon, local, lesions)
        caught = membership.attack(pictures, build, local, models, seed, privacy)
        found.append(Membership(f"{epochs} epochs, ε = {epsilon:g}", caught, privacy.noise))
    return found


@dataclass(frozen=True)
class Shares:
    """Mean errors of a class's share, by what the attacker is told."""

    guess: float
    plain: float
    words: float
    total: float
    private: float
    noise: float


def shares(
    own: Pictures, theirs: Pictures, build: Build, shadows: int, victims: int, images: int, cohort: int, seed: int
) -> Shares:
    """The attacker has `own` pictures, the hospitals have `theirs`; `victims` are in cohorts of `cohort`.

    Who is attacked with privacy is so by shadows with privacy.
    """
    base, local, evenness = build(seed), task(1), 0.5
    every = prevalence.hospitals(theirs, base, local, victims, images, evenness, seed + 1)
    told = prevalence.hospitals(own, base, local, shadows, images, evenness, seed + 2)
    attacker = prevalence.Attacker(base, own, told)
    groups = [every[at : at + cohort] for at in range(0, victims, cohort)]
    sums = [prevalence.mean(group) for group in groups for _ in group]
    words = [each for group in groups for each in _words(group, base, images)]
    privacy: Privacy = payload.privacy_for(EPSILON, local, images)
    hidden = prevalence.hospitals(theirs, base, local, victims, images, evenness, seed + 1, privacy)
    knowing = prevalence.Attacker(
        base, own, prevalence.hospitals(own, base, local, shadows, images, evenness, seed + 2, privacy)
    )
    return Shares(
        guess=prevalence.error_of_guess(attacker.guess, every),
        plain=prevalence.error(attacker, [each.tensors for each in every], every),
        words=prevalence.error(attacker, words, every),
        total=prevalence.error(attacker, sums, every),
        private=prevalence.error(knowing, [each.tensors for each in hidden], hidden),
        noise=privacy.noise,
    )


def _words(group: Sequence[prevalence.Hospital], base: nn.Module, images: int) -> list[Tensors]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "base.safetensors"
        tensorfile.write(path, networks.tensors(base))
        paths, roster = payload.masked(Path(scratch), [each.tensors for each in group], path, [images] * len(group))
        return [
            {name: np.array(each) for name, each in payload.as_if_a_sum(path, one, roster).items()} for one in paths
        ]


def linear(inputs: int, classes: int) -> Build:
    """Heads of one layer, fresh by a seed."""

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))

    return build

"""Inversion of one hospital's update in each mode of protection, with everything but the protection alike."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from concilia_client_node import networks, pictures
from concilia_client_node.dataset import Folder
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import Tensors
from concilia_kit.wire.training import Architecture, LocalTraining
from torch import Tensor

from benchmarks.privacy_attacks import inversion, likeness, payload
from benchmarks.privacy_attacks.inversion import Search
from benchmarks.privacy_attacks.likeness import Likeness
from benchmarks.privacy_attacks.membership import part

ARCHITECTURE = Architecture.CONVNEXT_TINY
"""Smooth throughout and without batch normalisation: the platform's that is easiest to invert."""
SIDE = 32
HOSPITALS = 4
BATCH = 2
EPSILON = 8.0


class Mode(StrEnum):
    """What the aggregator has of the hospital's update."""

    NOTHING = "unprotected"
    WORDS = "secure aggregation: its masked words"
    SUM = "secure aggregation: the sum"
    PRIVATE = "differential privacy"
    GUESS = "no update: mean of other lesions"


@dataclass(frozen=True)
class Rebuilt:
    """What came of an attack on one batch: likeness of each picture, and the pictures themselves, (n, 3, s, s)."""

    likeness: tuple[Likeness, ...]
    pictures: Tensor


def lesions(folder: Folder, count: int, size: int, seed: int) -> Pictures:
    """So many random lesions, one picture of each. Raises `ValueError` where there are fewer."""
    first = {each.lesion: each for each in folder.pictures if each.path is not None}
    order = np.random.default_rng(seed).permutation(len(first))
    if count > len(order):
        raise ValueError(f"there are {len(order)} lesions, and {count} are wanted")
    some = [list(first.values())[at] for at in order[:count]]
    images = [pictures.decode(each.path, size) for each in some if each.path is not None]
    return Pictures(
        torch.from_numpy(np.stack(images)),
        tuple(each.label for each in some),
        tuple(each.lesion for each in some),
        folder.classification,
    )


def real(some: Pictures) -> Tensor:
    """Pictures as numbers in [0, 1]."""
    return some.images.float() / 255


def attack(some: Pictures, others: Pictures, modes: Sequence[Mode], search: Search) -> dict[Mode, Rebuilt]:
    """Attack the first of several hospitals that have `BATCH` of the pictures each, in every mode. `others`: what the
    attacker has of its own."""
    batches = [part(some, np.arange(at, at + BATCH)) for at in range(0, len(some.labels) - BATCH + 1, BATCH)]
    victim, local = batches[0], payload.one_step(BATCH, SIDE)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = payload.fresh(ARCHITECTURE, folder / "base.safetensors", search.seed)
        network = networks.load(ARCHITECTURE, base)
        network.eval()
        names = frozenset(name for name, _ in network.named_parameters())
        read = _Reading(folder, base, batches, local, names)
        found: dict[Mode, Rebuilt] = {}
        for mode in modes:
            if mode is Mode.GUESS:
                guess = real(others).mean(0, keepdim=True).expand(BATCH, -1, -1, -1)
                found[mode] = Rebuilt(tuple(likeness.compare(guess, real(victim))), guess)
                continue
            labels = some.labels if mode is Mode.SUM else victim.labels
            every = inversion.invert(network, read(mode), labels, SIDE, search, some.classification)
            rebuilt = likeness.matched(every, real(victim))
            found[mode] = Rebuilt(tuple(likeness.compare(rebuilt, real(victim))), rebuilt)
    return found


class _Reading:
    """What the attacker takes for the gradient, by mode."""

    def __init__(
        self, folder: Path, base: Path, batches: Sequence[Pictures], local: LocalTraining, names: frozenset[str]
    ) -> None:
        self._folder, self._base, self._batches, self._local, self._names = folder, base, batches, local, names

    def __call__(self, mode: Mode) -> Mapping[str, Tensor]:
        if mode is Mode.PRIVATE:
            privacy = payload.privacy_for(EPSILON, self._local, BATCH)
            tensors = payload.trained_privately(ARCHITECTURE, self._base, self._batches[0], self._local, privacy)
            return self._plain(tensors)
        batches = self._batches[:1] if mode is Mode.NOTHING else self._batches
        cohort = [
            payload.trained(ARCHITECTURE, self._base, batch, self._local, seed) for seed, batch in enumerate(batches)
        ]
        if mode is not Mode.WORDS:
            return payload.mean_gradient([self._plain(each) for each in cohort])
        paths, roster = payload.masked(self._folder, cohort, self._base, [BATCH] * len(cohort))
        return payload.gradient_of_words(self._base, paths[0], self._local, self._names, roster)

    def _plain(self, tensors: Tensors) -> Mapping[str, Tensor]:
        path = payload.plain(self._folder / "update.safetensors", tensors, self._base)
        return payload.gradient(self._base, path, self._local, self._names)

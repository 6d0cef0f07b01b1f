"""Whether a lesion was trained on, told from the model that came of it: the likelihood ratio attack.

Carlini, Chien, Nasr, Song, Terzis, Tramèr, "Membership Inference Attacks From First Principles" (IEEE S&P 2022),
algorithm 1 with one variance for all lesions, as they advise for few shadow models. Each of the models is the victim
once, and the others are its shadows. What is scored is the lesion, with all its pictures, as that is what privacy is
promised to. Models are heads on frozen features: who trains them is the node's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from concilia_client_node import private_training, training
from concilia_client_node.augmentation import as_input
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import mix
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import LocalTraining
from torch import nn

from benchmarks.privacy_attacks.payload import DEVICE

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
RATE = 1e-3
_LEAST = 1e-3
"""Standard deviations below that are of lesions on which all models agree, and would make the ratio infinite."""


@dataclass(frozen=True)
class Caught:
    """How well members are told: area under the ROC curve, and the share of them that is found where one lesion in a
    thousand that was not trained on is taken for one that was. `accuracy`: the models' own, on lesions not trained on,
    and `fitted` on those trained on."""

    auc: float
    found: float
    accuracy: float
    fitted: float


def attack(
    pictures: Pictures,
    build: Callable[[int], nn.Module],
    local: LocalTraining,
    models: int,
    seed: int,
    privacy: Privacy | None = None,
) -> Caught:
    """Train so many models, each on a random half of the lesions, and attack each one. Scores of all are put together,
    for a rate of one in a thousand needs thousands."""
    names = sorted(set(pictures.lesions))
    generator = np.random.default_rng(seed)
    of = np.searchsorted(np.array(names), np.array(pictures.lesions))
    members = np.stack([generator.permutation(len(names)) < len(names) // 2 for _ in range(models)])
    scores, right = [], []
    for number, member in enumerate(members):
        network = build(mix(seed, number))
        some = part(pictures, np.flatnonzero(member[of]))
        if privacy is None:
            training.train(network, some, local, mix(seed, number), DEVICE)
        else:
            private_training.train(network, some, local, privacy, DEVICE)
        confidence, correct = _confidence(network, pictures)
        scores.append(np.bincount(of, confidence) / np.bincount(of))
        right.append(np.bincount(of, correct) / np.bincount(of))
    ratios, correct = ratio(np.stack(scores), members), np.stack(right)
    return Caught(
        area(ratios[members], ratios[~members]),
        found_at(ratios[members], ratios[~members], RATE),
        float(correct[~members].mean()),
        float(correct[members].mean()),
    )


def part(pictures: Pictures, rows: npt.NDArray[np.int64]) -> Pictures:
    """Some of the pictures, by their positions."""
    return replace(
        pictures,
        images=pictures.images[torch.from_numpy(rows)],
        labels=tuple(pictures.labels[row] for row in rows),
        lesions=tuple(pictures.lesions[row] for row in rows),
    )


def ratio(scores: Floats, members: Mask) -> Floats:
    """For each model and lesion the log of how much likelier its score is had the lesion been trained on, by all other
    models: normal, each lesion's own means, and one deviation for all in and all out. Both (models, lesions)."""
    found = np.empty_like(scores)
    for at in range(len(scores)):
        others = np.arange(len(scores)) != at
        inside, outside = (_normal(scores[others], side[others]) for side in (members, ~members))
        found[at] = _log_density(scores[at], *inside) - _log_density(scores[at], *outside)
    return found


def area(positive: Floats, negative: Floats) -> float:
    """Area under the ROC curve: how often a member is above a lesion that is none, ties half."""
    ordered = np.sort(negative)
    below, up_to = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negative)))


def found_at(positive: Floats, negative: Floats, rate: float) -> float:
    """Share of members above a threshold that no more than `rate` of the others are above."""
    allowed = int(rate * len(negative))
    threshold = np.sort(negative)[len(negative) - 1 - allowed]
    return float((positive > threshold).mean())


def _confidence(network: nn.Module, pictures: Pictures) -> tuple[Floats, Floats]:
    """For each picture log p / (1 - p) of its class, and whether it is the likeliest."""
    network.eval()
    labels = torch.tensor(pictures.labels)
    with torch.inference_mode():
        logits = network(as_input(pictures.images.clone(), pictures.classification)).double()
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return (own - others).numpy(), (logits.argmax(1) == labels).double().numpy()


def _normal(scores: Floats, chosen: Mask) -> tuple[Floats, float]:
    """Each lesion's mean over the chosen models, and one standard deviation about those means."""
    counts = np.maximum(chosen.sum(0), 1)
    means = np.where(chosen, scores, 0).sum(0) / counts
    deviation = float(np.sqrt(((scores - means) ** 2)[chosen].mean()))
    return means, max(deviation, _LEAST)


def _log_density(values: Floats, means: Floats, deviation: float) -> Floats:
    density: Floats = -((values - means) ** 2) / (2 * deviation**2) - np.log(deviation)
    return density

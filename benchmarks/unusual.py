"""Which score tells that a picture is none of dermoscopy: a network is trained shortly, and scores compared.

    python -m benchmarks.unusual --data shared/data/ham10000 --weights mobilenet_v2.safetensors --output unusual.json

`docs/decisions/0041` has what came of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from concilia_client_node import dataset, networks, pictures, training
from concilia_client_node.augmentation import as_input
from concilia_client_node.split import SiteChoice
from concilia_kit import oddity
from concilia_kit.wire.training import Architecture, Balance, LocalTraining, Optimizer
from torch import nn

from benchmarks import foreign

FALSE_NOTICES = 0.01
BATCH = 64
FITTED_ON = 1500
"""Training pictures from which the distances' means and covariance come."""
RIDGE = 1e-3

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """Logits (n, classes), pooled features (n, channels) and oddities (n,) of pictures."""

    logits: Floats
    features: Floats
    oddity: Floats


def see(network: Any, images: torch.Tensor) -> Seen:
    """Run pictures, uint8 (n, 3, s, s), through a network that ends in pooled features and a classifier."""
    parts: list[tuple[Floats, Floats, Floats]] = []
    with closing(oddity.Watch(network)) as watch, torch.inference_mode():
        for batch in torch.split(images, BATCH):
            with watch.listening() as heard:
                features = network.features(as_input(batch)).mean((2, 3))
            logits = network.classifier(features)
            parts.append(tuple(each.double().numpy() for each in (logits, features, oddity.oddities(heard))))
    return Seen(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def energy(seen: Seen) -> Floats:
    """Liu et al., "Energy-based Out-of-distribution Detection" (NeurIPS 2020), equation 4 at T = 1."""
    return -torch.from_numpy(seen.logits).logsumexp(1).numpy()


def hesitation(seen: Seen) -> Floats:
    """Hendrycks and Gimpel (ICLR 2017): the most probable class's share, the less the odder."""
    return -torch.from_numpy(seen.logits).softmax(1).amax(1).numpy()


def mahalanobis(fitted: Seen, labels: npt.NDArray[np.int64], *, diagonal: bool) -> Callable[[Seen], Floats]:
    """Lee et al. (NeurIPS 2018): distance of pooled features from the nearest class's mean, by one covariance."""
    means = np.stack([fitted.features[labels == label].mean(0) for label in np.unique(labels)])
    centred = fitted.features - means[np.searchsorted(np.unique(labels), labels)]
    covariance = centred.T @ centred / len(centred)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.diag(1 / np.diag(covariance)) if diagonal else np.linalg.inv(covariance)

    def distance(seen: Seen) -> Floats:
        found = [(((seen.features - mean) @ inverse) * (seen.features - mean)).sum(1) for mean in means]
        nearest: Floats = np.min(found, axis=0)
        return nearest

    return distance


def area(usual: Floats, odd: Floats) -> float:
    """Area under the ROC curve, by ranks."""
    order = np.argsort(np.concatenate([usual, odd]), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    return float((ranks[len(usual) :].sum() - len(odd) * (len(odd) + 1) / 2) / (len(usual) * len(odd)))


def compare(
    scores: dict[str, Callable[[Seen], Floats]], usual: Seen, odd: dict[str, Seen]
) -> dict[str, dict[str, dict[str, float]]]:
    """By score and kind of picture: area under the curve, and the share caught where `FALSE_NOTICES` are false."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, score in scores.items():
        held_out = score(usual)
        threshold = np.quantile(held_out, 1 - FALSE_NOTICES)
        of = {kind: score(seen) for kind, seen in odd.items()}
        found[name] = {
            kind: {"auroc": area(held_out, values), "caught": float((values > threshold).mean())}
            for kind, values in of.items()
        }
    return found


def trained(data: pictures.DecodedSite, weights: Path, options: argparse.Namespace) -> nn.Module:
    """A network from a trunk, trained as a hospital trains."""
    network = networks.build(Architecture.MOBILENET_V2)
    network.load_state_dict(safetensors.torch.load_file(weights), strict=False)
    local = LocalTraining(
        epochs=options.epochs,
        learning_rate=1e-3,
        image_size=options.size,
        max_images=options.images,
        balance=Balance.NONE,
        optimizer=Optimizer.ADAMW,
    )
    outcome = training.train(network, data.training, local, options.seed, torch.device("cpu"), _said)
    print(f"trained on {outcome.images} pictures, loss {outcome.loss:.3f}", flush=True)
    return network.eval()


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.unusual", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="HAM10000 in its public layout")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors of MobileNetV2, or of its trunk")
    parser.add_argument("--photographs", type=Path, help="a folder of JPEGs of anything else")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--each", type=int, default=200, help="pictures of each other kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the results go as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    site = dataset.choose(dataset.read(options.data), SiteChoice.parse("all"), options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = pictures.decode_site(site, options.size, Path(folder), options.threads)
    network = trained(data, options.weights, options)
    some = np.random.default_rng(options.seed).permutation(len(data.training))[:FITTED_ON]
    fitted = see(network, data.training.images[some])
    labels = np.array(data.training.labels)[some]
    usual = see(network, data.held_out.images)
    kinds = foreign.kinds(data.held_out.images.numpy(), options.each, options.seed, options.photographs)
    odd = {kind: see(network, torch.from_numpy(images)) for kind, images in kinds.items()}
    scores: dict[str, Callable[[Seen], Floats]] = {
        "energy": energy,
        "most probable share": hesitation,
        "Mahalanobis": mahalanobis(fitted, labels, diagonal=False),
        "Mahalanobis, diagonal": mahalanobis(fitted, labels, diagonal=True),
        "oddity": lambda seen: seen.oddity,
    }
    accuracy = float((usual.logits.argmax(1) == np.array(data.held_out.labels)).mean())
    result = {"held_out": len(data.held_out), "accuracy": accuracy, "scores": compare(scores, usual, odd)}
    print(table(result["scores"]), f"\naccuracy on {len(data.held_out)} held-out pictures: {accuracy:.3f}")
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def table(scores: Any) -> str:
    """Area under the curve, and the share caught, both in per cent, of each kind by each score; in Markdown."""
    names = list(scores)
    lines = ["| pictures | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    kinds = list(scores[names[0]])
    for kind in kinds:
        cells = [
            f"{100 * scores[name][kind]['auroc']:.0f} / {100 * scores[name][kind]['caught']:.0f}" for name in names
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    means = [
        " / ".join(f"{100 * np.mean([scores[name][kind][key] for kind in kinds]):.1f}" for key in ("auroc", "caught"))
        for name in names
    ]
    return "\n".join([*lines, "| mean | " + " | ".join(means) + " |"])


_began, _next = time.monotonic(), [1]  # the next tenth that is told


def _said(fraction: float) -> None:
    if fraction * 10 >= _next[0]:
        print(f"{fraction:.0%} trained after {time.monotonic() - _began:.0f} s", flush=True)
        _next[0] = int(fraction * 10) + 1


if __name__ == "__main__":
    raise SystemExit(main())

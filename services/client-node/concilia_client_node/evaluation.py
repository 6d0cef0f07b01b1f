"""A model on a site's held-out lesions, as counts: sums over sites are exact, and nobody's picture is in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from concilia_kit.lesions import CLASSES
from concilia_kit.wire.training import SCORE_BINS
from torch import nn

from concilia_client_node.augmentation import as_input
from concilia_client_node.pictures import Pictures
from concilia_client_node.split import stratified_cap
from concilia_client_node.trainer import Counts, Rows


def count(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> tuple[Rows, Rows, Rows]:
    """Confusion matrix and histograms from probabilities (n, 7) and classes (n,); score 1.0 is in the last bin."""
    classes = len(CLASSES)
    confusion = np.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2).reshape(classes, classes)
    bins = np.minimum((probabilities * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    cells = np.arange(classes) * SCORE_BINS + bins
    own = labels[:, None] == np.arange(classes)
    positives = np.bincount(cells[own], minlength=classes * SCORE_BINS).reshape(classes, SCORE_BINS)
    negatives = np.bincount(cells[~own], minlength=classes * SCORE_BINS).reshape(classes, SCORE_BINS)
    return _rows(confusion), _rows(positives), _rows(negatives)


def evaluate(
    network: nn.Module,
    pictures: Pictures,
    batch_size: int,
    max_images: int | None,
    seed: int,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> Counts:
    """Run the network over (at most `max_images`, stratified) pictures; `check` may raise between batches."""
    chosen = stratified_cap(pictures.labels, max_images or len(pictures), seed)
    labels = np.array([pictures.labels[position] for position in chosen], np.int64)
    network.to(device).eval()
    parts: list[npt.NDArray[np.float64]] = []
    with torch.inference_mode():
        for batch in torch.split(torch.tensor(chosen, dtype=torch.long), batch_size) if chosen else ():
            check()
            logits = network(as_input(pictures.images[batch].to(device)))
            parts.append(logits.double().log_softmax(1).cpu().numpy())
    scores = np.concatenate([np.empty((0, len(CLASSES))), *parts])
    confusion, positives, negatives = count(np.exp(scores), labels)
    return Counts(
        confusion,
        positives,
        negatives,
        loss_sum=float(-scores[np.arange(len(labels)), labels].sum()) + 0.0,
        images=len(chosen),
        lesions=len({pictures.lesions[position] for position in chosen}),
    )


def _rows(table: npt.NDArray[np.int64]) -> Rows:
    return tuple(tuple(int(value) for value in row) for row in table)

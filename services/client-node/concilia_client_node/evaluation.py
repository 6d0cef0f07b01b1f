"""A model on a site's held-out lesions, as counts: sums over sites are exact, and nobody's picture is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch
from concilia_kit import oddity
from concilia_kit.classification import VIEWS, Turns
from concilia_kit.wire.training import SCORE_BINS
from torch import nn

from concilia_client_node import calibrating
from concilia_client_node.augmentation import as_input
from concilia_client_node.pictures import Pictures
from concilia_client_node.split import stratified_cap
from concilia_client_node.trainer import Counts, Rows


def count(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> tuple[Rows, Rows, Rows]:
    """Confusion matrix and histograms from probabilities (n, classes) and labels (n,); score 1.0 is in the last bin."""
    classes = probabilities.shape[1]
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
    *,
    flips: bool = False,
    calibrate: bool = False,
    shift: npt.NDArray[np.float64] | None = None,
) -> Counts:
    """Run the network over (at most `max_images`, stratified) pictures; `check` may raise between batches. With `flips`
    each is also looked at as far as it may be turned; with `calibrate` there are counts for that, if pictures are
    enough. `shift` (classes,) is added to all logits."""
    chosen = stratified_cap(pictures.labels, max_images or len(pictures), seed)
    labels = np.array([pictures.labels[position] for position in chosen], np.int64)
    seen, odd = _seen(network, pictures, batch_size, device, chosen, flips=flips, check=check, listen=calibrate)
    if shift is not None:
        seen = seen + shift
    scores = _log_softmax(seen)
    probabilities = np.exp(scores)
    confusion, positives, negatives = count(probabilities, labels)
    lesions = [pictures.lesions[position] for position in chosen]
    calibration = None
    if calibrate:
        right, critical = probabilities.argmax(1) == labels, pictures.classification.critical_index
        calibration = calibrating.calibration(seen, labels, right, lesions, odd, seed, critical)
    return Counts(
        confusion,
        positives,
        negatives,
        loss_sum=float(-scores[np.arange(len(labels)), labels].sum()) + 0.0,
        images=len(chosen),
        lesions=len(set(lesions)),
        calibration=calibration,
    )


def logits(
    network: nn.Module,
    pictures: Pictures,
    batch_size: int,
    device: torch.device,
    chosen: Sequence[int] | None = None,
    *,
    flips: bool = False,
    check: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float64]:
    """The network's logits (n, classes) of pictures, all or those at `chosen` positions; with `flips` the mean over the
    picture and what it may be turned to. `check` may raise between batches."""
    return _seen(network, pictures, batch_size, device, chosen, flips=flips, check=check)[0]


def _seen(
    network: nn.Module,
    pictures: Pictures,
    batch_size: int,
    device: torch.device,
    chosen: Sequence[int] | None,
    *,
    flips: bool,
    check: Callable[[], None],
    listen: bool = False,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
    """Logits as `logits` has them, and how odd the pictures are as they stand (n,): where that is wanted,
    and the network can tell."""
    network.to(device).eval()
    views = VIEWS[pictures.classification.turns if flips else Turns.NONE]
    positions = torch.arange(len(pictures)) if chosen is None else torch.tensor(chosen, dtype=torch.long)
    parts: list[npt.NDArray[np.float64]] = []
    odd: list[npt.NDArray[np.float64]] = []
    with closing(oddity.Watch(network)) as watch, torch.inference_mode():
        for batch in torch.split(positions, batch_size) if len(positions) else ():
            check()
            inputs = as_input(pictures.images[batch].to(device), pictures.classification)
            with watch.listening(really=listen) as heard:
                outputs = [network(inputs).double()]
            if heard:
                odd.append(oddity.oddities(heard).cpu().numpy())
            outputs += [network(inputs.flip(ways)).double() for ways in views[1:]]
            parts.append(torch.stack(outputs).mean(0).cpu().numpy())
    found = np.concatenate(parts) if parts else np.empty((0, len(pictures.classification.classes)))
    return found, np.concatenate(odd) if odd else None


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return torch.from_numpy(logits).log_softmax(1).numpy()


def _rows(table: npt.NDArray[np.int64]) -> Rows:
    return tuple(tuple(int(value) for value in row) for row in table)

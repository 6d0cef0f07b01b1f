"""What a hospital counts of a network's outputs on its held-out lesions, for calibration. Pure, but for a line in
the log.

Sources: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), for temperature and reliability.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from concilia_kit import logs
from concilia_kit.wire.calibration import (
    CONFIDENCE_BINS,
    CONFIDENCE_STEP,
    ODDITY_BINS,
    ODDITY_LIMIT,
    ODDS_BINS,
    ODDS_LIMIT,
    TEMPERATURES,
    Calibration,
    Half,
    Reliability,
)
from concilia_kit.wire.training import EvaluationReport

from concilia_client_node.split import in_hash_order

FEWEST = 10
"""Pictures that a half must have to be told of: sums over fewer are nearly the pictures' own."""
_DECIMALS = round(-math.log10(CONFIDENCE_STEP))
_LOSS_DECIMALS = 6

MAX_REPORT = 60 * 1024
"""Bytes of a report; services take `bodies.MAX_BODY`."""
_log = logs.get(__name__)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]


def calibration(
    logits: Floats,
    labels: Integers,
    correct: Truths,
    lesions: Sequence[str],
    oddities: Floats | None,
    seed: int,
    critical: int | None,
) -> Calibration | None:
    """Counts of both halves from logits (n, classes), classes (n,), whether the most probable is theirs (n,), lesions
    (n,) and how odd each picture is (n,), if the network can tell; `critical` is the position of the class that must
    not be missed. None where a half has fewer than `FEWEST` pictures."""
    second = np.array(second_half(lesions, labels, seed), bool)
    if min(second.sum(), (~second).sum()) < FEWEST:
        return None
    first, other = (
        _half(logits[part], labels[part], correct[part], None if oddities is None else oddities[part], critical)
        for part in (~second, second)
    )
    return Calibration(halves=(first, other))


def fitting(report: EvaluationReport) -> EvaluationReport:
    """The same, without its calibration where services would not take so much: of a hundred classes and as many
    thousands of pictures. What a model is judged by goes before how it is read."""
    if report.calibration is None or len(report.model_dump_json()) <= MAX_REPORT:
        return report
    _log.warning("report too long to calibrate", classes=len(report.confusion), images=report.images)
    return report.model_copy(update={"calibration": None})


def second_half(lesions: Sequence[str], labels: Integers, seed: int) -> list[bool]:
    """Which pictures are of the second half: of each class every other lesion, in an order of its own, beginning by
    lot, so that both halves have what is rare."""
    classes: defaultdict[int, set[str]] = defaultdict(set)
    for lesion, label in zip(lesions, labels.tolist(), strict=True):
        classes[label].add(lesion)
    chosen: set[str] = set()
    for label, members in classes.items():
        begin = hashlib.sha256(f"halves:{seed}:{label}".encode()).digest()[0] % 2
        ordered = in_hash_order((f"halves:{lesion}" for lesion in members), seed)
        chosen.update(name.removeprefix("halves:") for name in ordered[begin::2])
    return [lesion in chosen for lesion in lesions]


def _half(logits: Floats, labels: Integers, correct: Truths, oddities: Floats | None, critical: int | None) -> Half:
    rows = np.arange(len(labels))
    losses, reliability = [], []
    for temperature in TEMPERATURES:
        shares = _log_shares(logits / temperature)
        losses.append(round(float(-shares[rows, labels].sum()), _LOSS_DECIMALS) + 0.0)
        reliability.append(_reliability(np.exp(shares.max(1)), correct))
    positives = negatives = None
    if critical is not None:
        bins, own = odds_bins(log_odds(logits, critical)), labels == critical
        positives = _counts(bins[own], ODDS_BINS)
        negatives = _counts(bins[~own], ODDS_BINS)
    return Half(
        images=len(labels),
        losses=tuple(losses),
        reliability=tuple(reliability),
        positives=positives,
        negatives=negatives,
        oddity=None if oddities is None else _counts(oddity_bins(oddities), ODDITY_BINS),
    )


def _reliability(confidence: Floats, correct: Truths) -> Reliability:
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    sums = np.bincount(bins, weights=confidence, minlength=CONFIDENCE_BINS)
    return Reliability(
        images=_counts(bins, CONFIDENCE_BINS),
        correct=_counts(bins[correct], CONFIDENCE_BINS),
        confidence=tuple(round(float(value), _DECIMALS) for value in sums),
    )


def log_odds(logits: Floats, which: int) -> Floats:
    """log p / (1 - p) of one class, from logits (n, classes): without the rounding of a share near one."""
    others = np.delete(logits, which, axis=1)
    return logits[:, which] - _log_sums(others)[:, 0]


def odds_bins(values: Floats) -> Integers:
    """The bin of each log-odds."""
    return _equal_bins(values, -ODDS_LIMIT, ODDS_LIMIT, ODDS_BINS)


def oddity_bins(values: Floats) -> Integers:
    """The bin of each oddity."""
    return _equal_bins(values, -ODDITY_LIMIT, ODDITY_LIMIT, ODDITY_BINS)


def _equal_bins(values: Floats, low: float, high: float, bins: int) -> Integers:
    return np.clip(np.floor((values - low) * (bins / (high - low))), 0, bins - 1).astype(np.int64)


def _log_sums(logits: Floats) -> Floats:
    top = logits.max(1, keepdims=True)
    result: Floats = top + np.log(np.exp(logits - top).sum(1, keepdims=True))
    return result


def _log_shares(logits: Floats) -> Floats:
    return logits - _log_sums(logits)


def _counts(bins: Integers, length: int) -> tuple[int, ...]:
    return tuple(np.bincount(bins, minlength=length).tolist())

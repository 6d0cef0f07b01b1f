"""How good a classifier is, exactly, and how sure that is: scores of rows of probabilities, intervals over lesions.

Scores are float64 of counts that are exact, and agree with the ISIC challenges' own (`isic-challenge-scoring`), as
`make test-scoring` shows. Intervals are of a bootstrap that draws lesions, not pictures: pictures of one lesion are
like each other, and intervals that took them for independent would be too narrow. A lesion that is drawn again is the
same pictures with a greater weight, so that nothing is sorted or copied again: recalls and calibration are one product
of matrices, and an AUC is a running sum in the order of its scores.

Sources: Hanley, McNeil, Radiology 143:29 (1982), of the AUC; Guo, Pleiss, Sun, Weinberger, arXiv:1706.04599 (2017), of
the calibration error; Efron, Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, of percentiles; Field,
Welsh, J. R. Stat. Soc. B 69:369 (2007), of drawing whole clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BINS = 15
RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 64  # resamples; more leave the processor's cache

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Of rows; not a number where it is of a class that no row has, or that all have where an AUC needs others.

    `recalls` and `aucs` (one against the rest, a tie half) are by class; `balanced_accuracy` and `macro_auc` their
    means over the classes that have one. `critical_*` are of the class that must not be missed (melanoma): sensitivity
    where the likeliest class is the answer, sensitivity where a probability from `threshold` on is one, and AUC; not
    numbers where no class is critical. `calibration_error`: expected, of 15 equal bins of the likeliest's probability.
    """

    accuracy: float
    balanced_accuracy: float
    recalls: tuple[float, ...]
    macro_auc: float
    aucs: tuple[float, ...]
    critical_sensitivity: float
    critical_sensitivity_at_threshold: float
    critical_auc: float
    calibration_error: float


class Scored(NamedTuple):
    """Scores, and the ends of their intervals."""

    value: Scores
    low: Scores
    high: Scores


@dataclass(frozen=True)
class Rows:
    """One row a picture: probabilities (n, classes) in [0, 1], class (n,), and the lesion's name (n,).

    `critical`: position of the class that must not be missed, if there is one; it is suspected from a probability of
    `threshold` on. Where two classes are likeliest there is no answer, which is a wrong one, as ISIC counts. Raises
    `ValueError`.
    """

    probabilities: Floats
    labels: Whole
    lesions: Sequence[str]
    critical: int | None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        rows, classes = self.probabilities.shape
        if not rows or self.labels.shape != (rows,) or len(self.lesions) != rows:
            raise ValueError("there must be rows, and a label and a lesion for each of them")
        if not ((self.probabilities >= 0) & (self.probabilities <= 1)).all():
            raise ValueError("a probability is no number from 0 to 1")
        if not ((self.labels >= 0) & (self.labels < classes)).all() or not 0 <= (self.critical or 0) < classes:
            raise ValueError(f"a class is none of the {classes}")


def score(rows: Rows) -> Scores:
    """The scores. Pictures count, whichever lesion they are of."""
    return _Prepared(rows).score()


def bootstrap(rows: Rows, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Scored:
    """The scores with percentile intervals: `resamples` times as many lesions as there are, drawn with replacement.

    A score that a resample lacks (none of its lesions is of the class) is left out of that interval. Equal
    seeds draw equal lesions. Raises `ValueError` where there is nothing to draw.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError("at least one resample, and a level between 0 and 1")
    prepared, source, found = _Prepared(rows), np.random.default_rng(seed), list[Floats]()
    for begin in range(0, resamples, _AT_ONCE):
        drawn = _draw(source, prepared.lesions, min(_AT_ONCE, resamples - begin))
        found.append(prepared.table(drawn))
    low, high = _quantiles(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Scored(prepared.score(), prepared.named(low), prepared.named(high))


def _draw(source: np.random.Generator, lesions: int, resamples: int) -> Floats:
    """How often each lesion is drawn, (lesions, resamples)."""
    drawn = source.integers(0, lesions, (resamples, lesions))
    drawn += lesions * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * lesions)
    return np.ascontiguousarray(counts.reshape(resamples, lesions).T, np.float64)


def _quantiles(table: Floats, ends: Sequence[float]) -> Floats:
    """Of each column's numbers, (ends, columns); not a number for a column that has none."""
    found = np.full((len(ends), table.shape[1]), np.nan)
    there = ~np.isnan(table).all(axis=0)
    found[:, there] = np.nanquantile(table[:, there], ends, axis=0)
    return found


class _Order(NamedTuple):
    """What a class's AUC needs: lesions of the others' rows by ascending score; of the class's own rows the lesions,
    how many of the others score less, and how many less or the same."""

    others: Whole
    own: Whole
    less: Whole
    not_more: Whole


class _Prepared:
    """Rows as sums by lesion, and each class's order."""

    def __init__(self, rows: Rows) -> None:
        self._critical = rows.critical
        self._classes = rows.probabilities.shape[1]
        names, lesion_of = np.unique(np.asarray(rows.lesions), return_inverse=True)
        self.lesions = len(names)
        self._sums = self._sums_of(rows, lesion_of)
        self._orders = [self._order(rows, lesion_of, label) for label in range(self._classes)]

    def score(self) -> Scores:
        """Of every lesion once."""
        return self.named(self.table(np.ones((self.lesions, 1)))[0])

    def named(self, row: Floats) -> Scores:
        """A row of `table`, by name."""
        single, recalls, aucs = np.split(row, [5, 5 + self._classes])
        accuracy, balanced, macro, suspected, error = map(float, single)
        return Scores(
            accuracy=accuracy,
            balanced_accuracy=balanced,
            recalls=tuple(recalls.tolist()),
            macro_auc=macro,
            aucs=tuple(aucs.tolist()),
            critical_sensitivity=float(np.nan if self._critical is None else recalls[self._critical]),
            critical_sensitivity_at_threshold=suspected,
            critical_auc=float(np.nan if self._critical is None else aucs[self._critical]),
            calibration_error=error,
        )

    def table(self, weights: Floats) -> Floats:
        """For weights (lesions, resamples): (resamples, columns), five scores, then recalls and AUCs by class."""
        classes = self._classes
        sums = np.split(weights.T @ self._sums, [classes, 2 * classes, 2 * classes + 1, 2 * classes + 2], axis=1)
        there, right, critical, suspected, gaps = sums
        pictures = there.sum(axis=1)
        recalls = _share(right, there)
        aucs = np.stack([_auc(order, weights) for order in self._orders], axis=1)
        single = (
            right.sum(axis=1) / pictures,
            _mean(recalls),
            _mean(aucs),
            _share(suspected[:, 0], critical[:, 0]),
            np.abs(gaps).sum(axis=1) / pictures,
        )
        return np.concatenate([np.stack(single, axis=1), recalls, aucs], axis=1)

    def _sums_of(self, rows: Rows, lesion_of: Whole) -> Floats:
        """By lesion: pictures of each class, those of each that are right, those of the critical class, those of them
        that are suspected, and in each bin of confidence by how much confidence and being right differ."""
        everything = np.arange(len(rows.labels))
        confidence = rows.probabilities.max(axis=1)
        undecided = (rows.probabilities == confidence[:, None]).sum(axis=1) > 1
        right = (rows.probabilities.argmax(axis=1) == rows.labels) & ~undecided
        critical = rows.labels == (-1 if rows.critical is None else rows.critical)
        # Bins are open below and closed above, as Guo et al. have them; 0 itself is in the first.
        bins = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="left") - 1, 0, BINS - 1)
        columns = np.zeros((len(everything), 2 * self._classes + 2 + BINS))
        columns[everything, rows.labels] = 1
        columns[everything, self._classes + rows.labels] = right
        columns[:, 2 * self._classes] = critical
        columns[:, 2 * self._classes + 1] = critical & (rows.probabilities[:, rows.critical or 0] >= rows.threshold)
        columns[everything, 2 * self._classes + 2 + bins] = right - confidence
        sums = np.zeros((self.lesions, columns.shape[1]))
        np.add.at(sums, lesion_of, columns)
        return sums

    def _order(self, rows: Rows, lesion_of: Whole, label: int) -> _Order:
        scores, is_own = rows.probabilities[:, label], rows.labels == label
        order = np.argsort(scores[~is_own], kind="stable")
        others = scores[~is_own][order]
        return _Order(
            lesion_of[~is_own][order],
            lesion_of[is_own],
            np.searchsorted(others, scores[is_own], side="left"),
            np.searchsorted(others, scores[is_own], side="right"),
        )


def _auc(order: _Order, weights: Floats) -> Floats:
    """Of one class, (resamples,): of pairs of an own row and another's the share that is in order, a tie half.

    Weights are counts, and twice the pairs is below 2^53 for tens of millions of rows: only the division rounds.
    """
    below = np.zeros((len(order.others) + 1, weights.shape[1]))
    np.cumsum(weights[order.others], axis=0, out=below[1:])
    own = weights[order.own]
    twice = np.einsum("ij,ij->j", own, below[order.less] + below[order.not_more])
    return _share(twice, 2 * own.sum(axis=0) * below[-1])


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(table: Floats) -> Floats:
    """Of each row's numbers; not a number for a row without."""
    there = ~np.isnan(table)
    return _share(np.where(there, table, 0).sum(axis=1), there.sum(axis=1).astype(np.float64))

"""Metrics from counts: exact sums over sites, then one division.

Balanced accuracy is the mean recall over the classes that have images (Brodersen et al., ICPR 2010). The area under the
ROC curve comes from score histograms by the Mann-Whitney statistic, ties within a bin counted half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.wire.jobs import Scores
from concilia_kit.wire.training import EvaluationReport

Counts = npt.NDArray[np.int64]


def confusion(reports: Sequence[EvaluationReport]) -> Counts:
    """Sum of the confusion matrices, (classes, classes), rows true. Raises `ValueError` for no report."""
    return _sum([report.confusion for report in reports])


def class_counts(reports: Sequence[EvaluationReport]) -> tuple[int, ...] | None:
    """Evaluated pictures of each class; None where nobody reported."""
    return tuple(confusion(reports).sum(1).tolist()) if reports else None


def pooled(reports: Sequence[EvaluationReport], classification: Classification = LESIONS) -> Scores | None:
    """Scores of all sites' held-out images together; None where nobody had any."""
    critical = classification.critical_index
    images = sum(report.images for report in reports)
    if not images:
        return None
    matrix = confusion(reports)
    recalls = [float(row[c] / row.sum()) if row.sum() else None for c, row in enumerate(matrix)]
    present = [value for value in recalls if value is not None]
    return Scores(
        images=images,
        accuracy=float(np.trace(matrix) / images),
        balanced_accuracy=sum(present) / len(present),
        loss=sum(report.loss_sum for report in reports) / images,
        recall=tuple(recalls),
        melanoma_recall=None if critical is None else recalls[critical],
        auc=areas(_sum([report.positives for report in reports]), _sum([report.negatives for report in reports])),
    )


def areas(positives: Counts, negatives: Counts) -> tuple[float | None, ...]:
    """Area under each class's ROC curve from histograms (classes, bins); None where a class lacks either side."""
    result: list[float | None] = []
    for positive, negative in zip(positives, negatives, strict=True):
        pairs = int(positive.sum()) * int(negative.sum())
        if not pairs:
            result.append(None)
            continue
        below = np.cumsum(negative) - negative
        result.append(float((positive * (2 * below + negative)).sum() / (2 * pairs)))
    return tuple(result)


def _sum(matrices: Sequence[Sequence[Sequence[int]]]) -> Counts:
    if not matrices:
        raise ValueError("no reports to sum")
    total: Counts = np.asarray(matrices, np.int64).sum(axis=0)
    return total

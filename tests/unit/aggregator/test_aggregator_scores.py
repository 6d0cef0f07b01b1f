"""Metrics from counts, against images counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from concilia_aggregator import scores
from concilia_kit.lesions import CLASSES
from concilia_kit.wire.training import SCORE_BINS, EvaluationReport
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

K = len(CLASSES)
Image = tuple[int, tuple[int, ...]]  # true class, bin of each class's probability

images = st.lists(
    st.tuples(st.integers(0, K - 1), st.tuples(*[st.integers(0, SCORE_BINS - 1)] * K)), min_size=0, max_size=25
)


def report(seen: list[Image], **changes: object) -> EvaluationReport:
    confusion = np.zeros((K, K), int)
    positives, negatives = np.zeros((K, SCORE_BINS), int), np.zeros((K, SCORE_BINS), int)
    for true, bins in seen:
        confusion[true, int(np.argmax(bins))] += 1
        for c in range(K):
            (positives if c == true else negatives)[c, bins[c]] += 1
    return EvaluationReport.model_validate(
        {
            "job": "0" * 64,
            "round": 1,
            "model": "1" * 64,
            "confusion": confusion.tolist(),
            "positives": positives.tolist(),
            "negatives": negatives.tolist(),
            "loss_sum": 0.5 * len(seen),
            "images": len(seen),
            "lesions": len(seen),
            "overlapping_lesions": 0,
            "skipped_images": 0,
            "seconds": 0.1,
            **changes,
        }
    )


@given(images, images)
def test_pooled_scores_equal_those_of_all_images_together(one: list[Image], two: list[Image]) -> None:
    together = scores.pooled([report(one), report(two)])
    seen = one + two
    if not seen:
        assert together is None
        return
    assert together == scores.pooled([report(seen)])
    assert together is not None
    hits = [(true, int(np.argmax(bins)) == true) for true, bins in seen]
    recalls = [
        np.mean([hit for true, hit in hits if true == c]) for c in range(K) if any(true == c for true, _ in hits)
    ]
    assert together.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert together.accuracy == pytest.approx(np.mean([hit for _, hit in hits]))
    assert together.loss == pytest.approx(0.5)
    for c in range(K):
        positive = [bins[c] for true, bins in seen if true == c]
        negative = [bins[c] for true, bins in seen if true != c]
        if not positive or not negative:
            assert together.auc[c] is None
            continue
        wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)]
        assert together.auc[c] == pytest.approx(np.mean(wins))


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 3},
        {"confusion": [[1]]},
        {"positives": [[0] * SCORE_BINS] * (K - 1)},
        {"negatives": [[0] * SCORE_BINS] * K},
        {"loss_sum": float("nan")},
        {"images": -1},
        {"file": "a.jpg"},
    ],
)
def test_reports_that_contradict_themselves_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        report([(1, (3,) * K), (2, (5,) * K)], **changes)

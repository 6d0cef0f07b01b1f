"""Scores beside those of the ISIC challenges and scikit-learn, on cases that hypothesis draws, in an environment of
their own (`make test-scoring`).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isic_challenge_scoring import metrics as isic
from isic_challenge_scoring.confusion import create_binary_confusion_matrix
from sklearn import metrics as sklearn

from benchmarks import scoring
from benchmarks.scoring import Rows

CASES = 400


@st.composite
def cases(draw: st.DrawFn) -> Rows:
    """Rows of 2 to 9 classes, some of which may be nobody's; in some cases of few values, so that many are equal."""
    classes, count = draw(st.integers(2, 9)), draw(st.integers(1, 60))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    there = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes, unique=True))
    labels = source.choice(there, count)
    steps = draw(st.sampled_from([None, 1, 2, 4]))
    if steps is None:
        probabilities = source.dirichlet(np.full(classes, draw(st.sampled_from([0.1, 1.0, 10.0]))), count)
    else:
        probabilities = source.multinomial(steps, np.full(classes, 1 / classes), count) / steps
    lesions = [f"L{number}" for number in source.integers(0, count, count)]
    return Rows(probabilities, labels, lesions, draw(st.integers(0, classes - 1)), draw(st.sampled_from([0.25, 0.5])))


def tables(rows: Rows) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """As ISIC's functions want them: truth, predictions and weights."""
    classes = rows.probabilities.shape[1]
    names = [f"class{label}" for label in range(classes)]
    truth = pd.DataFrame(np.eye(classes)[rows.labels], columns=names)
    return truth, pd.DataFrame(rows.probabilities, columns=names), pd.Series(np.ones(len(truth)))


def same(ours: float, theirs: float) -> None:
    assert (math.isnan(ours) and math.isnan(theirs)) or ours == pytest.approx(theirs, rel=0, abs=1e-12)


@settings(max_examples=CASES, deadline=None)
@given(cases())
def test_balanced_accuracy_is_isics(rows: Rows) -> None:
    same(scoring.score(rows).balanced_accuracy, float(isic.balanced_multiclass_accuracy(*tables(rows))))


@settings(max_examples=CASES, deadline=None)
@given(cases())
def test_every_auc_is_isics(rows: Rows) -> None:
    truth, predicted, weights = tables(rows)
    found = scoring.score(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is nobody's, or everybody's
        theirs = [float(isic.auc(truth[name], predicted[name], weights)) for name in truth]
    for ours, other in zip(found.aucs, theirs, strict=True):
        same(ours, other)
    there = [each for each in theirs if not math.isnan(each)]
    same(found.macro_auc, float(np.mean(there)) if there else math.nan)
    same(found.critical_auc, theirs[rows.critical or 0])


@settings(max_examples=CASES, deadline=None)
@given(cases())
def test_sensitivity_at_a_threshold_is_isics(rows: Rows) -> None:
    is_critical = rows.labels == rows.critical
    suspected = rows.probabilities[:, rows.critical or 0] >= rows.threshold
    found = scoring.score(rows).critical_sensitivity_at_threshold
    if not is_critical.any():
        assert math.isnan(found)  # ISIC has 1 there
    else:
        same(found, float(isic.binary_sensitivity(create_binary_confusion_matrix(is_critical, suspected))))


@settings(max_examples=CASES, deadline=None)
@given(cases())
def test_accuracy_and_recalls_are_scikit_learns(rows: Rows) -> None:
    classes = rows.probabilities.shape[1]
    tied = (rows.probabilities == rows.probabilities.max(axis=1, keepdims=True)).sum(axis=1) > 1
    answers = np.where(tied, classes, rows.probabilities.argmax(axis=1))
    found = scoring.score(rows)
    same(found.accuracy, float(sklearn.accuracy_score(rows.labels, answers)))
    recalls = sklearn.recall_score(
        rows.labels, answers, labels=range(classes), average=None, zero_division=np.nan
    ).tolist()
    for ours, other in zip(found.recalls, recalls, strict=True):
        same(ours, other)
    same(found.critical_sensitivity, recalls[rows.critical or 0])


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_a_weighted_auc_is_scikit_learns(rows: Rows, seed: int) -> None:
    """What the bootstrap computes of a resample, whose weights are how often a lesion was drawn."""
    prepared = scoring._Prepared(rows)
    names, of = np.unique(np.asarray(rows.lesions), return_inverse=True)
    drawn = scoring._draw(np.random.default_rng(seed), len(names), 3)
    for resample, row in enumerate(prepared.table(drawn)):
        weights = drawn[of, resample]
        present = weights > 0
        for label, ours in enumerate(prepared.named(row).aucs):
            truth = rows.labels[present] == label
            if truth.all() or not truth.any():
                assert math.isnan(ours)
            else:
                same(
                    ours,
                    float(
                        sklearn.roc_auc_score(truth, rows.probabilities[present, label], sample_weight=weights[present])
                    ),
                )

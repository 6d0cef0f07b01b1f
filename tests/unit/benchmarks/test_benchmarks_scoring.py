"""Scores are what their definitions say, and a resample's are those of its pictures written out one by one.

`tests/scoring` compares with others' implementations.
"""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scoring
from benchmarks.scoring import Rows, Scores


def drawn_rows(seed: int, count: int, classes: int = 7, steps: int = 4) -> Rows:
    """Rows of few values, so that many are equal, of about half as many lesions."""
    source = np.random.default_rng(seed)
    probabilities = source.multinomial(steps, np.full(classes, 1 / classes), count) / steps
    lesions = [f"L{number}" for number in source.integers(0, count // 2 + 1, count)]
    return Rows(probabilities, source.integers(0, classes, count), lesions, classes // 2, 0.25)


rows_of_any_kind = st.builds(drawn_rows, st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 9))


def by_definition(rows: Rows) -> Scores:
    """Pair by pair and picture by picture."""
    table, labels, classes = rows.probabilities.tolist(), rows.labels.tolist(), rows.probabilities.shape[1]
    answers = [line.index(max(line)) if line.count(max(line)) == 1 else None for line in table]
    right = [answer == label for answer, label in zip(answers, labels, strict=True)]

    def mean(some: list[float]) -> float:
        there = [each for each in some if not math.isnan(each)]
        return sum(there) / len(there) if there else math.nan

    def recall(label: int) -> float:
        return mean([float(hit) for hit, own in zip(right, labels, strict=True) if own == label])

    def auc(label: int) -> float:
        own = [line[label] for line, of in zip(table, labels, strict=True) if of == label]
        others = [line[label] for line, of in zip(table, labels, strict=True) if of != label]
        return mean([1.0 if one > other else 0.5 if one == other else 0.0 for one in own for other in others])

    error = 0.0
    for bin_ in range(scoring.BINS):
        low, high = bin_ / scoring.BINS, (bin_ + 1) / scoring.BINS
        inside = [at for at, line in enumerate(table) if low < max(line) <= high]
        error += abs(sum(right[at] - max(table[at]) for at in inside)) / len(table)
    assert rows.critical is not None
    suspected = [float(line[rows.critical] >= rows.threshold) for line, of in zip(table, labels) if of == rows.critical]  # noqa: B905
    recalls, aucs = tuple(map(recall, range(classes))), tuple(map(auc, range(classes)))
    return Scores(
        accuracy=mean([float(each) for each in right]),
        balanced_accuracy=mean(list(recalls)),
        recalls=recalls,
        macro_auc=mean(list(aucs)),
        aucs=aucs,
        critical_sensitivity=recalls[rows.critical],
        critical_sensitivity_at_threshold=mean(suspected),
        critical_auc=aucs[rows.critical],
        calibration_error=error,
    )


def flat(scores: Scores) -> list[float]:
    return [each for field in astuple(scores) for each in (field if isinstance(field, tuple) else (field,))]


@given(rows_of_any_kind)
def test_scores_are_what_their_definitions_say(rows: Rows) -> None:
    assert flat(scoring.score(rows)) == pytest.approx(flat(by_definition(rows)), abs=1e-12, nan_ok=True)


@given(rows_of_any_kind, st.integers(0, 2**32 - 1))
def test_a_resamples_scores_are_those_of_its_pictures(rows: Rows, seed: int) -> None:
    prepared = scoring._Prepared(rows)
    names = sorted(set(rows.lesions))
    drawn = scoring._draw(np.random.default_rng(seed), len(names), 5)
    assert drawn.sum(axis=0).tolist() == [len(names)] * 5
    for resample, row in enumerate(prepared.table(drawn)):
        at = [
            position
            for position, lesion in enumerate(rows.lesions)
            for _ in range(int(drawn[names.index(lesion), resample]))
        ]
        written = replace(
            rows,
            probabilities=rows.probabilities[at],
            labels=rows.labels[at],
            lesions=[rows.lesions[position] for position in at],
        )
        assert flat(prepared.named(row)) == pytest.approx(flat(scoring.score(written)), abs=1e-12, nan_ok=True)


def test_an_interval_is_of_the_resamples_percentiles() -> None:
    rows = drawn_rows(3, 80)
    found = scoring.bootstrap(rows, 200, seed=5)
    source, table = np.random.default_rng(5), []
    names, of = np.unique(rows.lesions, return_inverse=True)
    for _ in range(200):
        counts = np.bincount(source.integers(0, len(names), len(names)), minlength=len(names))
        at = np.repeat(np.arange(80), counts[of])
        table.append(
            scoring.score(
                replace(
                    rows,
                    probabilities=rows.probabilities[at],
                    labels=rows.labels[at],
                    lesions=[rows.lesions[position] for position in at],
                )
            ).balanced_accuracy
        )
    assert found.value == scoring.score(rows)
    assert (found.low.balanced_accuracy, found.high.balanced_accuracy) == pytest.approx(
        tuple(np.quantile(table, [0.025, 0.975])), abs=1e-12
    )
    assert scoring.bootstrap(rows, 200, seed=5) == found
    assert scoring.bootstrap(rows, 200, seed=6) != found
    assert scoring.bootstrap(rows, 200, seed=5, level=0.5).low.accuracy > found.low.accuracy


def test_more_pictures_of_the_same_lesions_make_no_interval_narrower() -> None:
    rows = drawn_rows(4, 200)
    four = replace(
        rows,
        probabilities=np.repeat(rows.probabilities, 4, axis=0),
        labels=np.repeat(rows.labels, 4),
        lesions=[lesion for lesion in rows.lesions for _ in range(4)],
    )
    one, again = scoring.bootstrap(rows, 300), scoring.bootstrap(four, 300)
    assert flat(again.low) == pytest.approx(flat(one.low), abs=1e-12, nan_ok=True)
    assert flat(again.high) == pytest.approx(flat(one.high), abs=1e-12, nan_ok=True)
    apart = scoring.bootstrap(replace(four, lesions=[str(at) for at in range(800)]), 300)
    assert apart.high.accuracy - apart.low.accuracy < 0.7 * (one.high.accuracy - one.low.accuracy)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 200 draws of 150 lesions with one or two equal pictures, whose answers are right with probability 0.7."""
    source, held = np.random.default_rng(0), 0
    for _ in range(200):
        right, views = source.random(150) < 0.7, source.integers(1, 3, 150)
        first = np.repeat(np.where(right, 0.9, 0.1), views)
        rows = Rows(
            np.stack([first, 1 - first], axis=1),
            np.zeros(len(first), np.int64),
            [str(lesion) for lesion in np.repeat(np.arange(150), views)],
            None,
        )
        found = scoring.bootstrap(rows, 300)
        held += found.low.accuracy <= 0.7 <= found.high.accuracy
    assert 180 <= held <= 199


def test_a_single_lesion_leaves_no_doubt_and_a_class_that_is_not_there_no_number() -> None:
    rows = Rows(np.array([[0.2, 0.8, 0.0]]), np.array([1]), ["L"], 2)
    found = scoring.bootstrap(rows, 50)
    for each in found:
        assert (each.accuracy, each.balanced_accuracy, each.recalls[1]) == (1, 1, 1)
        assert all(map(math.isnan, (each.macro_auc, *each.aucs, each.recalls[0], each.critical_sensitivity)))
        assert each.calibration_error == pytest.approx(0.2)
    none = scoring.score(replace(rows, critical=None))
    assert all(map(math.isnan, (none.critical_sensitivity, none.critical_auc, none.critical_sensitivity_at_threshold)))


@pytest.mark.parametrize(("confidence", "bin_"), [(1.0, 14), (0.8, 11), (12 / 15, 11), (np.nextafter(0.8, 1), 12)])
def test_bins_are_closed_above(confidence: float, bin_: int) -> None:
    rows = Rows(np.array([[confidence, 1 - confidence]]), np.array([0]), ["L"], None)
    gaps = scoring._Prepared(rows)._sums[0, -scoring.BINS :]
    assert np.flatnonzero(gaps).tolist() == ([] if confidence == 1 else [bin_])


def test_what_is_no_row_is_refused() -> None:
    rows = drawn_rows(0, 5)
    for change in (
        {"labels": rows.labels[:4]},
        {"lesions": ["L"]},
        {"probabilities": rows.probabilities * 5},
        {"probabilities": np.where(rows.probabilities > 0, np.nan, 0.0)},
        {"labels": np.full(5, 7)},
        {"labels": np.full(5, -1)},
        {"critical": 7},
        {"probabilities": np.zeros((0, 7)), "labels": np.zeros(0, np.int64), "lesions": []},
    ):
        with pytest.raises(ValueError, match=r"rows|number|class"):
            replace(rows, **change)
    with pytest.raises(ValueError, match="resample"):
        scoring.bootstrap(rows, 0)

"""Intervals of shares and of their means: published values, properties, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from concilia_aggregator.card import intervals
from concilia_aggregator.card.intervals import Interval
from hypothesis import given
from hypothesis import strategies as st


# Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(hits: int, of: int, low: float, high: float) -> None:
    found = intervals.wilson(hits, of)
    assert found.value == hits / of
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, int]:
    of = draw(st.integers(1, 10**6))
    return draw(st.integers(0, of)), of


@given(shares())
def test_wilsons_limits_solve_its_equation(share: tuple[int, int]) -> None:
    hits, of = share
    found = intervals.wilson(hits, of)
    assert 0 <= found.low <= found.value <= found.high <= 1
    for limit in (found.low, found.high):
        if 0 < limit < 1:
            assert abs(found.value - limit) == pytest.approx(
                intervals.Z * math.sqrt(limit * (1 - limit) / of), rel=1e-6, abs=1e-9
            )
    mirrored = intervals.wilson(of - hits, of)
    assert (1 - mirrored.high, 1 - mirrored.low) == (pytest.approx(found.low), pytest.approx(found.high))


@pytest.mark.parametrize(("hits", "of"), [(0, 0), (2, 1), (-1, 3)])
def test_what_is_no_share(hits: int, of: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        intervals.wilson(hits, of)


@given(st.lists(shares(), min_size=1, max_size=9))
def test_a_mean_is_surer_than_what_it_is_of(given: list[tuple[int, int]]) -> None:
    each = [intervals.wilson(*share) for share in given]
    found = intervals.mean(each)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value - found.low <= max(one.value - one.low for one in each) + 1e-12
    assert found.high - found.value <= max(one.high - one.value for one in each) + 1e-12
    if len(each) == 1:
        assert found == pytest.approx(tuple(each[0]))


def test_no_shares_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no shares"):
        intervals.mean([])


# Classes as skewed as HAM10000's, and small ones of which all are right.
@pytest.mark.parametrize(
    ("pictures", "truth", "often"),
    [
        ((60, 100, 200, 20, 210, 1300, 25), (0.6, 0.75, 0.7, 0.55, 0.65, 0.9, 0.8), (0.935, 0.97)),
        ((8, 9, 10), (0.9, 0.8, 0.7), (0.92, 0.99)),
        ((8, 9, 10), (0.97, 0.98, 0.99), (0.9, 1.0)),
        ((12, 400), (0.5, 0.5), (0.935, 0.97)),
    ],
)
def test_intervals_of_balanced_accuracy_hold_the_truth_as_often_as_they_say(
    pictures: tuple[int, ...], truth: tuple[float, ...], often: tuple[float, float]
) -> None:
    drawn = np.random.default_rng(7).binomial(pictures, truth, size=(4000, len(pictures)))
    held = 0
    for hits in drawn:
        matrix = [[0] * len(pictures) for _ in pictures]
        for place, (right, of) in enumerate(zip(hits, pictures, strict=True)):
            matrix[place][place] = int(right)
            matrix[place][(place + 1) % len(pictures)] += of - int(right)
        found = intervals.balanced_accuracy(matrix)
        assert found is not None
        held += found.low <= sum(truth) / len(truth) <= found.high
    assert often[0] <= held / len(drawn) <= often[1]


def test_classes_without_pictures_are_left_out() -> None:
    matrix = [[3, 1, 0], [0, 0, 0], [0, 0, 4]]
    recalls = intervals.recalls(matrix)
    assert recalls == [intervals.wilson(3, 4), None, intervals.wilson(4, 4)]
    assert intervals.balanced_accuracy(matrix) == intervals.mean([intervals.wilson(3, 4), intervals.wilson(4, 4)])
    assert intervals.accuracy(matrix) == intervals.wilson(7, 8)
    nothing: list[list[int]] = [[0, 0], [0, 0]]
    assert (intervals.balanced_accuracy(nothing), intervals.accuracy(nothing)) == (None, None)
    assert isinstance(recalls[0], Interval)

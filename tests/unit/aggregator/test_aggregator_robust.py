"""Median and trimmed mean: against other people's, and what they are there for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from concilia_aggregator import strategies
from concilia_aggregator.strategies import Additive, Median, TrimmedMean
from concilia_aggregator.strategies.trimmed_mean import trimmed
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import LocalTraining
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

Array = np.ndarray[Any, Any]

updates = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 33), st.integers(1, 20)), elements=st.floats(-1e6, 1e6, width=32)
)


@given(updates)
def test_the_median_is_numpys(values: Array) -> None:
    got = Median().fold(list(values), [1] * len(values))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.median(values.astype(np.float64), axis=0).astype(np.float32))


@given(updates, st.floats(0, 0.49))
def test_the_trimmed_mean_is_that_of_what_is_left(values: Array, share: float) -> None:
    count = len(values)
    out = trimmed(count, share)
    assert out <= share * count
    assert count - 2 * out >= 1
    got = TrimmedMean(share).fold(list(values), [1] * count)
    kept = np.sort(values.astype(np.longdouble), axis=0)[out : count - out]
    np.testing.assert_allclose(got, kept.mean(axis=0).astype(np.float64), rtol=1e-6, atol=1e-6)


@given(updates, st.randoms(), st.sampled_from([Median(), TrimmedMean(0.2)]))
def test_neither_order_nor_samples_matter(values: Array, random: Any, strategy: Median | TrimmedMean) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    samples = [random.randint(1, 10**9) for _ in order]
    one = strategy.fold(list(values), samples)
    assert one.tobytes() == strategy.fold([values[i] for i in order], [1] * len(order)).tobytes()


@pytest.mark.parametrize("strategy", [Median(), TrimmedMean(0.2)])
def test_a_fifth_that_is_hostile_moves_nothing_beyond_the_others(strategy: Median | TrimmedMean) -> None:
    random = np.random.default_rng(0)
    honest = random.normal(size=(8, 1000)).astype(np.float32)
    hostile = np.full((2, 1000), np.finfo(np.float32).max, np.float32)
    hostile[1] *= -1
    got = strategy.fold(list(np.concatenate([honest, hostile])), [1] * 10)
    assert (got <= honest.max(axis=0)).all()
    assert (got >= honest.min(axis=0)).all()


def test_counters_take_the_largest_value() -> None:
    blocks = [np.array([3, 9], np.int64), np.array([7, 1], np.int64), np.array([5, 5], np.int64)]
    for strategy in (Median(), TrimmedMean()):
        assert strategy.fold(blocks, [1, 1, 1]).tolist() == [7, 9]


def test_jobs_name_them() -> None:
    local = LocalTraining(proximal_mu=0.5)
    for spec, kind in (
        (Strategy(name=StrategyName.MEDIAN), Median),
        (Strategy(name=StrategyName.TRIMMED_MEAN, trim=0.25), TrimmedMean),
    ):
        made = strategies.make(spec)
        assert isinstance(made, kind)
        assert not isinstance(made, Additive)
        assert made.local(local).proximal_mu == 0.0
        with pytest.raises(ValueError, match="nothing"):
            made.fold([], [])
    with pytest.raises(ValidationError):
        Strategy(name=StrategyName.TRIMMED_MEAN, trim=0.5)

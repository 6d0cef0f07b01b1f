"""What an update was worth: by brute force, and by what must hold of any such measure."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from concilia_aggregator import reputation
from concilia_aggregator.strategies.geometry import Fact, Geometry, gram_of
from hypothesis import given, settings
from hypothesis import strategies as st

Wide = npt.NDArray[np.float64]


def geometry(rows: Wide, samples: list[int]) -> Geometry:
    return Geometry([Fact(each) for each in samples], lambda: gram_of(rows))


def by_subsets(rows: Wide, samples: list[int]) -> list[float]:
    """Shapley's formula over coalitions, with the means themselves."""
    count = len(rows)
    whole = np.average(rows, axis=0, weights=samples)

    def worth(some: tuple[int, ...]) -> float:
        if not some:
            return 0.0
        mean = np.average(rows[list(some)], axis=0, weights=[samples[each] for each in some])
        lengths = float(np.linalg.norm(mean) * np.linalg.norm(whole))
        return float(mean @ whole) / lengths if lengths else 0.0

    values = []
    for index in range(count):
        others = [each for each in range(count) if each != index]
        value = 0.0
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for some in itertools.combinations(others, size):
                value += weight * (worth(tuple(sorted((*some, index)))) - worth(some))
        values.append(value)
    return values


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(2, 10), st.integers(0, 2**32 - 1))
def test_shapley_values_are_those_of_the_formula(count: int, size: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    rows = source.normal(size=(count, size)) + source.normal(size=size)
    samples = source.integers(1, 100, count).tolist()
    found = reputation.shapley(gram_of(rows), samples)
    assert found == pytest.approx(by_subsets(rows, samples), abs=1e-6)
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-9)


def test_drawn_orders_come_near_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(3)
    rows = source.normal(size=(7, 50)) + 0.5 * source.normal(size=50)
    samples = [10, 20, 30, 40, 50, 60, 70]
    exact = reputation.shapley(gram_of(rows), samples)
    monkeypatch.setattr(reputation, "EXACT", 3)
    drawn = reputation.shapley(gram_of(rows), samples, seed=1)
    assert drawn == reputation.shapley(gram_of(rows), samples, seed=1)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert math.fsum(drawn) == pytest.approx(1.0)


def test_who_stands_out_is_seen_and_who_is_alike_is_worth_the_same() -> None:
    source = np.random.default_rng(0)
    common = source.normal(size=200)
    rows = common + 0.3 * source.normal(size=(10, 200))
    rows[4] = rows[5]
    rows[9] = -8 * common
    found = reputation.standings(geometry(rows, [50] * 10))
    assert max(range(10), key=lambda index: found[index].anomaly) == 9
    assert found[9].anomaly > 10
    assert all(each.anomaly < 3 for each in found[:9])
    assert (found[4].shapley, found[4].without) == pytest.approx((found[5].shapley, found[5].without), abs=0.02)
    assert found[9].length == pytest.approx(8, rel=0.2)
    assert found[9].without == max(each.without for each in found)


def test_leaving_one_out_is_as_the_means_say() -> None:
    source = np.random.default_rng(5)
    rows, samples = source.normal(size=(5, 30)), [1, 2, 3, 4, 5]
    found = reputation.standings(geometry(rows, samples))
    whole = np.average(rows, axis=0, weights=samples)
    for index, each in enumerate(found):
        others = [at for at in range(5) if at != index]
        rest = np.average(rows[others], axis=0, weights=[samples[at] for at in others])
        assert each.without == pytest.approx(float(np.linalg.norm(whole - rest) / np.linalg.norm(whole)))
        cosine = float(rows[index] @ whole / (np.linalg.norm(rows[index]) * np.linalg.norm(whole)))
        assert each.agreement == pytest.approx(cosine)
    assert math.fsum(each.samples for each in found) == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.zeros((1, 4)), np.ones((1, 4)), np.array([[1.0], [-1.0]])])
def test_there_is_no_saying_of_nothing(rows: Wide) -> None:
    for each in reputation.standings(geometry(rows, [1] * len(rows))):
        assert all(math.isfinite(value) for value in (each.agreement, each.shapley, each.without, each.anomaly))

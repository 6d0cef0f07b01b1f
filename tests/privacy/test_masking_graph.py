"""Groups and graphs: who shares with whom follows from the roster, and is safe as it is said to be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from concilia_kit import masking
from concilia_kit.masking.graph import COMPLETE, Degree, degree, least
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privacy.cohort import Cohort

THRESHOLD = 2 / 3


def tail(population: int, marked: int, draws: int, most: int) -> float:
    """The probability that so many of the drawn ones, or more, are marked, by logarithms of gamma functions."""

    def ways(of: int, out: int) -> float:
        return math.lgamma(of + 1) - math.lgamma(out + 1) - math.lgamma(of - out + 1)

    counts = range(max(most, draws - (population - marked)), min(marked, draws) + 1)
    return sum(
        math.exp(ways(marked, each) + ways(population - marked, draws - each) - ways(population, draws))
        for each in counts
    )


@pytest.mark.parametrize("members", [150, 300, 1000])
def test_degrees_keep_what_they_promise(members: int) -> None:
    its = degree(members, THRESHOLD)
    half, others = its.neighbours // 2, members - 1
    colluding, lost = members // 5, members - math.ceil(2 * members / 3)
    assert its.neighbours % 2 == 0
    assert members * tail(others, colluding, its.neighbours, its.shares) <= 2**-40 * 1.001
    assert members**2 / 2 * tail(others, colluding, half, its.arc) ** 2 <= 2**-40 * 1.001
    assert members * tail(others, lost, its.neighbours, its.neighbours - its.shares + 1) <= 2**-20 * 1.001
    assert members * tail(others, lost, half, half - its.arc + 1) <= 2**-20 * 1.001


def test_degrees_grow_slowly() -> None:
    found = {members: degree(members, THRESHOLD).neighbours for members in (3, 64, 65, 100, 150, 300, 1000)}
    assert [found[members] for members in (3, 64, 65, 100)] == [2, 63, 64, 99]
    assert found[150] < 149
    assert found[1000] == 246


@pytest.mark.parametrize("members", [3, 4, 12, COMPLETE])
def test_all_are_neighbours_of_a_few(members: int) -> None:
    assert degree(members, THRESHOLD) == Degree(members - 1, math.ceil(members * 2 / 3), 0)


def test_two_thirds_is_two_thirds() -> None:
    """Not the float next to it, of which three times as much is less or more than 2."""
    assert [least(members, 2 / 3) for members in (3, 6, 9, 300, 3000)] == [2, 4, 6, 200, 2000]
    assert [least(10, each) for each in (0.6, 0.7, 0.75, 1.0)] == [6, 7, 8, 10]


@settings(max_examples=15, deadline=None)
@given(count=st.integers(3, 40), group=st.none() | st.integers(3, 9))
def test_the_graph_of_any_roster(tmp_path_factory: pytest.TempPathFactory, count: int, group: int | None) -> None:
    cohort = Cohort.of(count, tmp_path_factory.mktemp("cohort"), start={"w": np.zeros(1, np.float32)})
    roster = cohort.keys().model_copy(update={"group": group})
    if not masking.is_possible(count, group):
        with pytest.raises(masking.MaskingError, match="too few"):
            masking.graph(roster)
        return
    its = masking.graph(roster)
    assert sorted(member for each in its.groups for member in each) == list(range(count))
    sizes = [len(each) for each in its.groups]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= (group or count)
    for member in range(count):
        assert member not in its.neighbours[member]
        assert its.holders(member) == set(its.groups[its.group_of[member]])
        assert all(member in its.neighbours[other] for other in its.neighbours[member])
    assert masking.graph(roster) is its


def test_the_order_is_the_digests(tmp_path: Path) -> None:
    cohort = Cohort.of(20, tmp_path, start={"w": np.zeros(1, np.float32)})
    roster = cohort.keys().model_copy(update={"group": 4})
    other = roster.model_copy(update={"threshold": 0.75})
    assert masking.graph(roster).groups != masking.graph(other).groups


@pytest.fixture(scope="module")
def circle(tmp_path_factory: pytest.TempPathFactory) -> tuple[masking.Graph, list[str]]:
    """150 members, whose graph is a circle."""
    cohort = Cohort.of(150, tmp_path_factory.mktemp("circle"), start={"w": np.zeros(1, np.float32)})
    return masking.graph(cohort.keys()), [each.hospital for each in cohort.members]


def test_a_circle(circle: tuple[masking.Graph, list[str]]) -> None:
    its, _ = circle
    assert {len(each) for each in its.neighbours} == {130}
    assert all(at in its.neighbours[other] for at in range(150) for other in its.neighbours[at])
    assert set(its.thresholds) == {degree(150, THRESHOLD).shares}


def test_who_is_said_to_be_gone_cannot_be_chosen_to_cut_others_off(circle: tuple[masking.Graph, list[str]]) -> None:
    """A third, all in a row: enough are left in all, but of one arc too few."""
    its, hospitals = circle
    (order,) = its._circles
    assert not its.is_missing(hospitals)
    assert not its.is_missing([hospitals[at] for at in order if at % 3])
    in_a_row = set(order[10:60])
    left = [hospitals[at] for at in order if at not in in_a_row]
    assert len(left) == 100 == its.needed[0]
    assert its.is_missing(left)


def test_strangers_do_not_count(circle: tuple[masking.Graph, list[str]]) -> None:
    its, hospitals = circle
    assert its.is_missing([*hospitals[:90], *(f"0x{at:040x}" for at in range(60))])


def test_each_of_the_demands_on_a_circle() -> None:
    """Of ten in a circle, each a neighbour of two on either side."""
    circle = tuple(range(10))

    def missing(gone: set[int], *, shares: int = 0, arc: int = 0, needed: int = 0) -> bool:
        return masking.Graph._is_missing(circle, Degree(4, shares, arc), needed, set(circle) - gone)

    assert not missing({0, 1}, shares=3, arc=0, needed=8)
    assert missing({0, 1}, needed=9)
    assert missing({0, 1}, shares=4)
    assert not missing({0, 5}, shares=4, arc=1)
    assert missing({0, 9}, arc=1)  # the circle closes
    assert missing({1, 8, 9}, shares=3)

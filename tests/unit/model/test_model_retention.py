"""What goes and what stays, by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from concilia_kit.wire.models import StoredKind
from concilia_model.retention import DAY, Facts, Policy, Reading, goes, may_take
from hypothesis import given
from hypothesis import strategies as st

NOW = 1000 * DAY
UPDATE = Facts(
    digest="a" * 64,
    size=1,
    brought_at=NOW - 90 * DAY,
    shared=False,
    registered=False,
    updates=1,
    job_last_at=NOW - 40 * DAY,
)
ORPHAN = replace(UPDATE, updates=0, job_last_at=None)
READING = Reading(since=NOW - 200 * DAY, taking_since=None)
POLICY = Policy(updates=30 * DAY, orphans=7 * DAY)

times = st.floats(0, 2 * NOW)
facts = st.builds(
    Facts,
    digest=st.just("a" * 64),
    size=st.integers(0, 2**40),
    brought_at=times,
    shared=st.booleans(),
    registered=st.booleans(),
    first_bases=st.integers(0, 1),
    bases=st.integers(1, 3),
    globals_=st.integers(0, 2),
    updates=st.integers(0, 2),
    adapters=st.integers(0, 1),
    job_last_at=st.none() | times,
    job_open=st.booleans(),
).flatmap(lambda made: st.sampled_from([made, replace(made, first_bases=0, bases=0)]))
periods = st.none() | st.floats(1, NOW)


def test_an_update_whose_job_is_over_for_long_enough_goes() -> None:
    assert goes(UPDATE, POLICY, READING, NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"job_open": True},
        {"job_last_at": NOW - 29 * DAY},
        {"job_last_at": None},
        {"brought_at": NOW - 29 * DAY},
        {"shared": True},
        {"registered": True},
        {"bases": 1, "first_bases": 1},
        {"bases": 1},
        {"globals_": 1},
        {"adapters": 1},
    ],
)
def test_an_update_stays(change: dict[str, object]) -> None:
    assert not goes(replace(UPDATE, **change), POLICY, READING, NOW)  # type: ignore[arg-type]


def test_nothing_goes_without_a_policy_or_without_the_ledger() -> None:
    for each in (UPDATE, ORPHAN):
        assert goes(each, POLICY, READING, NOW)
        assert not goes(each, Policy(None, None), READING, NOW)
        assert not goes(each, POLICY, None, NOW)


def test_an_orphan_stays_that_may_be_for_a_round_under_way_or_of_another_ledger() -> None:
    assert not goes(replace(ORPHAN, shared=True), POLICY, READING, NOW)
    assert not goes(replace(ORPHAN, brought_at=NOW - 6 * DAY), POLICY, READING, NOW)
    assert not goes(ORPHAN, POLICY, replace(READING, taking_since=NOW - 95 * DAY), NOW)
    assert goes(ORPHAN, POLICY, replace(READING, taking_since=NOW - 80 * DAY), NOW)
    assert not goes(ORPHAN, POLICY, replace(READING, since=NOW - 89 * DAY), NOW)


@given(facts, periods, periods, st.none() | times, times)
def test_only_updates_and_orphans_of_hospitals_alone_ever_go(
    each: Facts, updates: float | None, orphans: float | None, taking: float | None, now: float
) -> None:
    if not goes(each, Policy(updates, orphans), Reading(0.0, taking), now):
        return
    assert each.kind in {StoredKind.UPDATE, StoredKind.ORPHAN}
    assert not any((each.shared, each.registered, each.bases, each.globals_, each.adapters))
    period = updates if each.kind is StoredKind.UPDATE else orphans
    assert period is not None
    assert each.brought_at + period <= now
    if each.kind is StoredKind.UPDATE:
        assert not each.job_open
        assert goes(each, Policy(updates, orphans), Reading(0.0, taking), now + 1)


@given(facts)
def test_every_file_is_of_one_kind(each: Facts) -> None:
    if each.kind is StoredKind.INITIAL:
        assert each.first_bases == each.bases
    if each.kind in {StoredKind.SPARE, StoredKind.ORPHAN}:
        assert not any((each.updates, each.bases, each.globals_, each.registered, each.adapters))


def test_a_round_takes_updates_until_a_day_after_its_deadline() -> None:
    def asked(*, over: bool = False, named: bool = True, now: float = 10.0) -> float | None:
        return may_take(opened_at=1.0, deadline=10.0, over=over, named=named, now=now)

    assert asked() == 1.0
    assert asked(now=10.0 + DAY) is None
    assert asked(over=True) is None
    assert asked(over=True, named=False, now=99 * DAY) == 1.0  # who knows whose updates it committed

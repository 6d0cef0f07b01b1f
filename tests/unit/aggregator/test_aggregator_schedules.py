"""Schedules: one cosine over a job comes in pieces that fit, and says nothing where each round is alike."""

from __future__ import annotations

import itertools

import pytest
from concilia_aggregator import schedules
from concilia_kit.wire.jobs import JobSpec, Schedule
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import LocalTraining, Optimizer, Statistics, Trained
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

INITIAL = "a" * 64


@given(rounds=st.integers(1, 60), warm=st.floats(0, 1), head=st.integers(0, 5))
def test_the_pieces_of_a_whole_jobs_cosine_fit(rounds: int, warm: float, head: int) -> None:
    schedule = Schedule(whole_job=True, warm_up=warm, head_rounds=head)
    pieces = [schedules.of_round(LocalTraining(), schedule, number, rounds) for number in range(1, rounds + 1)]
    assert pieces[0].rate_start == 1
    assert pieces[-1].rate_end == pytest.approx(schedules.LEAST)
    for earlier, later in itertools.pairwise(pieces):
        assert earlier.rate_end == later.rate_start < earlier.rate_start
    assert [each.warm_up for each in pieces] == [warm] + [0.0] * (rounds - 1)
    assert [each.trained for each in pieces] == [
        Trained.HEAD if number <= head else Trained.ALL for number in range(1, rounds + 1)
    ]


@given(rounds=st.integers(1, 20), own=st.none() | st.integers(1, 25))
def test_statistics_are_kept_after_so_many_rounds(rounds: int, own: int | None) -> None:
    schedule = Schedule(statistics_rounds=own)
    found = [
        schedules.of_round(LocalTraining(), schedule, number, rounds).statistics for number in range(1, rounds + 1)
    ]
    before = rounds if own is None else min(own, rounds)
    assert found == [Statistics.BATCH] * before + [Statistics.KEPT] * (rounds - before)


def test_a_schedule_that_says_nothing_of_statistics_is_as_it_was_before_it_could() -> None:
    told = JobSpec(name="a", initial=INITIAL, schedule=Schedule(whole_job=True)).model_dump(mode="json")
    assert told["schedule"] == {"whole_job": True, "warm_up": 0.0, "head_rounds": 0}
    assert "statistics" not in told["local"]


def test_rounds_that_are_alike_are_as_they_were_before_there_were_schedules() -> None:
    written = LocalTraining(rate_start=0.5, rate_end=0.5, warm_up=0.5, trained=Trained.HEAD)  # by a job's author
    assert schedules.of_round(written, Schedule(), 3, 5) == LocalTraining()
    told = JobSpec(name="a", initial=INITIAL).model_dump(mode="json")
    assert "schedule" not in told
    assert not {"rate_start", "rate_end", "warm_up", "trained", "optimizer", "mixup", "label_smoothing"} & set(
        told["local"]
    )


@pytest.mark.parametrize("name", [StrategyName.SCAFFOLD, StrategyName.FEDNOVA])
def test_what_goes_by_plain_steps_needs_them(name: StrategyName) -> None:
    with pytest.raises(ValidationError, match="optimizer must be sgd"):
        JobSpec(name="a", initial=INITIAL, strategy=Strategy(name=name), local=LocalTraining(optimizer=Optimizer.ADAMW))

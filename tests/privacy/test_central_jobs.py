"""Noise at the aggregator as jobs ask for it, tasks pass it on and updates tell of it; and what it cannot go with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from concilia_aggregator import dispatch, rounds
from concilia_kit import digests
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.privacy import CentralNoise, Spent
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import TrainTask, UpdateMetrics
from pydantic import ValidationError

from tests.privacy.test_dp_jobs import COUNTS

NOISED: dict[str, Any] = {"name": "dp_fedavg", "radius": 1.5, "noise": 2}


def job(**changes: Any) -> dict[str, Any]:
    return {"name": "j", "initial": "0" * 64, "strategy": NOISED} | changes


def test_a_job_may_leave_noise_to_the_aggregator_and_its_words_are_unchanged_where_it_does_not() -> None:
    spec = JobSpec.model_validate(job())
    assert spec.strategy.central == CentralNoise(radius=1.5, noise=2.0, delta=1e-5)
    finer = JobSpec.model_validate(job(strategy=NOISED | {"delta": 1e-7}))
    assert finer.strategy.central == CentralNoise(radius=1.5, noise=2.0, delta=1e-7)
    for others in ({"name": "fedavg"}, {"name": "norm_clipping", "radius": 1}):
        plain = Strategy.model_validate(others)
        assert plain.central is None
        assert not {"noise", "delta"} & plain.model_dump(mode="json").keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"secure": {}}, "no secure aggregation with dp_fedavg: noise that the aggregator adds goes onto updates that"),
        ({"secure": {"group": 5}}, "no secure aggregation with dp_fedavg"),
        ({"privacy": {"noise": 1}, "local": {"balance": "none"}}, "no dp_fedavg with privacy"),
        ({"encoding": {"name": "int8", "zstd": True}}, r"no encoding with dp_fedavg but .*int8\+zstd"),
        ({"encoding": {"name": "topk", "share": 0.1}}, r"no encoding with dp_fedavg but .*topk:0\.1"),
        ({"schedule": {"head_rounds": 1}}, "no head_rounds with dp_fedavg"),
        ({"strategy": NOISED | {"mixing": "bucketing"}}, "mixing goes before a robust strategy"),
        ({"strategy": {"name": "dp_fedavg", "noise": 1}}, "dp_fedavg needs a radius"),
        ({"strategy": {"name": "dp_fedavg", "radius": 1}}, "dp_fedavg needs a radius, .* and noise"),
        ({"strategy": NOISED | {"radius": 1e9}}, "radius of dp_fedavg must be 1e-06 to 1e"),
        ({"strategy": {"name": "fedavg", "noise": 1}}, "noise and delta are dp_fedavg's"),
    ],
)
def test_what_it_cannot_go_with_is_refused_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as told:
        JobSpec.model_validate(job(**changes))
    assert len(told.value.errors()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"local": {"balance": "sampling", "mixup": 0.2}},
        {"encoding": {"name": "float16"}},
        {"encoding": {"name": "int8"}},
        {"over_selection": 1.5},
        {"recording": "merkle"},
        {"target": 0.8},
    ],
)
def test_what_it_can_go_with(changes: dict[str, Any]) -> None:
    assert JobSpec.model_validate(job(**changes)).strategy.central is not None


def test_hospitals_are_told_what_noise_their_updates_get() -> None:
    for asked, central in ((NOISED, CentralNoise(radius=1.5, noise=2.0)), ({"name": "fedavg"}, None)):
        spec = JobSpec.model_validate(job(strategy=asked))
        state = replace(rounds.begin("1" * 64), cohort=frozenset({"0x" + "00" * 20}), round=1, deadline=9)
        (row,) = dispatch.trainings("a" * 64, spec, state, {})
        assert TrainTask.model_validate(row.task).central == central
        assert ("central" in row.task) is (central is not None), "a node of before knows no such member"


def test_what_it_cost_says_whose_noise_it_was_and_is_signed() -> None:
    spent = Spent(epsilon=2.5, delta=1e-5, noise=1.0, clip=3.0, rate=1.0, steps=1, central=True)
    own = spent.model_copy(update={"central": False})
    told, others = (UpdateMetrics(**COUNTS, privacy=each).model_dump(mode="json") for each in (spent, own))
    assert told["privacy"]["central"] is True
    assert "central" not in others["privacy"], "digests of before are what they were"
    assert digests.of_json(told) != digests.of_json(others)

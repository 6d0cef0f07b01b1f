"""Which evaluations calibrate, what jobs are refused, and how a model's use gets into its registration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import calibrating, dispatch, rounds, views
from concilia_aggregator.card.reading import reading
from concilia_aggregator.errors import ReportMismatch
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import spec_of, state_of
from concilia_client_node import calibrating as counting
from concilia_client_node.evaluation import count
from concilia_kit.classification import LESIONS, Turns
from concilia_kit.wire.calibration import Use
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.training import EVALUATE_TASK, EvaluateTask, EvaluationReport
from pydantic import ValidationError

from .test_aggregator_service import HOSPITALS, World, near

INITIAL = "1" * 64


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "j", "initial": INITIAL, "calibrate": True, **changes})


def task(spec: JobSpec, **changes: Any) -> EvaluateTask:
    fields = {"phase": Phase.EVALUATING, "head": INITIAL, "cohort": frozenset({HOSPITALS[0]}), "deadline": 2**40}
    state = rounds.begin(INITIAL)
    made = JobState(**{**{name: getattr(state, name) for name in JobState.__dataclass_fields__}, **fields, **changes})
    [row] = dispatch.evaluations("2" * 64, spec, made)
    assert row.name == EVALUATE_TASK
    return EvaluateTask.model_validate(row.task)


def test_only_what_may_be_published_is_calibrated() -> None:
    three = spec(rounds=3)
    asked = [task(three, closed=closed, round=closed).calibrate for closed in range(4)]
    assert asked == [False, False, False, True]
    early = spec(rounds=3, target=0.9)
    assert [task(early, closed=closed, round=closed).calibrate for closed in range(4)] == [False, True, True, True]
    assert not task(spec(calibrate=False), closed=3, round=3).calibrate


def test_a_task_that_does_not_calibrate_is_what_it_was() -> None:
    plain = task(spec(calibrate=False), closed=3, round=3).model_dump(mode="json")
    assert "calibrate" not in plain
    assert "flips" not in plain["evaluation"]
    document = spec(calibrate=False).model_dump(mode="json")
    assert not {"calibrate", "sensitivity"} & document.keys()


@pytest.mark.parametrize("strategy", ["fedbn", "fedrep"])
def test_networks_of_hospitals_own_say_nothing_of_the_published_one(strategy: str) -> None:
    with pytest.raises(ValidationError, match="a network of its own"):
        spec(strategy={"name": strategy})
    assert spec(strategy={"name": strategy}, calibrate=False).strategy.name == strategy


def test_pictures_that_may_not_be_turned_are_not() -> None:
    upright = LESIONS.model_copy(update={"name": "chests", "turns": Turns.NONE}).model_dump(mode="json")
    with pytest.raises(ValidationError, match="may not be turned"):
        spec(classification=upright, evaluation={"flips": True})
    assert spec(classification=upright).evaluation.flips is False


def report(job: str, round_: int, digest: str, seed: int, *, calibrate: bool = True) -> EvaluationReport:
    """Eighty pictures of a network that is twice too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (80, 7))
    shares = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > rng.random((80, 1))).argmax(1)
    said = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confusion, positives, negatives = count(said, labels)
    lesions = [f"L{number}" for number in range(80)]
    right = logits.argmax(1) == labels
    counted = counting.calibration(logits, labels, right, lesions, rng.normal(-1, 0.3, 80), seed, 4)
    return EvaluationReport(
        job=job,
        round=round_,
        model=digest,
        confusion=confusion,
        positives=positives,
        negatives=negatives,
        loss_sum=1.0,
        images=80,
        lesions=80,
        overlapping_lesions=0,
        skipped_images=0,
        seconds=1.0,
        calibration=counted if calibrate else None,
    )


@pytest.fixture
def world(tmp_path: Path, ledger: Any, artifacts: Any) -> World:
    return World(tmp_path, ledger, artifacts)


def run(world: World, **changes: Any) -> str:
    job = world.create(rounds=1, **changes)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    world.submit(job, 1, {who: near(at) for at, who in enumerate(HOSPITALS)})
    return job


def tell(world: World, job: str, reports: list[EvaluationReport]) -> None:
    for hospital, each in zip(HOSPITALS, reports, strict=True):
        world.coordinator.report(hospital, each)
    world.coordinator.advance(job)


def test_the_use_of_a_published_model_is_registered_and_shown(world: World) -> None:
    job = run(world, calibrate=True, evaluation={"flips": True}, sensitivity=0.8)
    head = state_of(world.store.job(job)).head
    asked = [EvaluateTask.model_validate(given) for _, name, given in world.sent if name == EVALUATE_TASK]
    assert [(each.round, each.calibrate, each.evaluation.flips) for each in asked] == [(0, False, True)] * 3 + [
        (1, True, True)
    ] * 3
    reports = [report(job, 1, head, seed) for seed in range(3)]
    tell(world, job, reports)
    assert world.phase(job) is Phase.FINISHED
    [registered] = world.artifacts.registered
    assert registered.use == calibrating.use(reports, spec(evaluation={"flips": True}, sensitivity=0.8))
    use = registered.use
    assert use is not None
    assert (use.flips, use.images) == (True, 240)
    assert 1.6 < use.temperature < 2.4
    assert use.critical is not None
    assert (use.critical.code, use.critical.wanted) == ("mel", 0.8)
    assert use.unusual is not None
    shown = views.job(world.store, world.store.job(job))
    assert [each.calibrated is not None for each in shown.rounds] == [False, True]
    assert shown.rounds[1].calibrated is not None
    assert shown.rounds[1].calibrated.use == use
    assert "calibrated" not in shown.rounds[0].model_dump(mode="json")
    told = reading(shown, head)
    assert f"Logits are divided by {use.temperature:.3f}." in told
    assert f"{use.error_before:.3f} as the network is, {use.error_after:.3f} with it" in told
    assert "`mel` is warned of from a share of" in told
    assert reading(shown, "9" * 64) == ""


def test_answers_by_own_shares_are_held_against_what_everybody_evaluated(world: World) -> None:
    job = run(world, own_shares=True, local={"balance": "logit"})
    head = state_of(world.store.job(job)).head
    asked = [EvaluateTask.model_validate(given) for _, name, given in world.sent if name == EVALUATE_TASK]
    first = world.store.reports(job, 0)[0]
    everybody = tuple(np.sum([each.confusion for each in first.values()], axis=(0, 2)).tolist())
    assert sum(everybody) == sum(each.images for each in first.values()) > 0
    assert [(each.round, each.evaluation.class_counts) for each in asked] == [(0, None)] * 3 + [(1, everybody)] * 3
    row = world.store.job(job)
    counts = world.store.class_counts(job, spec_of(row))
    polled = dispatch.assigned(job, spec_of(row), state_of(row), HOSPITALS[0], frozenset(), 0, None, counts)
    assert polled == asked[-1]
    world.evaluate(job, 1)
    [registered] = world.artifacts.registered
    assert registered.use is not None
    assert registered.use == Use(class_counts=everybody)
    assert "class shares" in reading(views.job(world.store, world.store.job(job)), head)


def test_shares_are_for_networks_that_leave_them_out() -> None:
    with pytest.raises(ValidationError, match="no own_shares with balance loss"):
        spec(own_shares=True)
    with pytest.raises(ValidationError, match="no class_counts"):
        spec(evaluation={"class_counts": [1] * 7})
    assert "own_shares" not in spec().model_dump(mode="json")
    assert spec(own_shares=True, local={"balance": "logit"}).own_shares


def test_without_counts_a_model_is_read_as_it_is(world: World) -> None:
    job = run(world, calibrate=True)
    head = state_of(world.store.job(job)).head
    tell(world, job, [report(job, 1, head, seed, calibrate=False) for seed in range(3)])
    assert world.phase(job) is Phase.FINISHED
    assert world.artifacts.registered[0].use is None
    assert "use" not in world.artifacts.registered[0].model_dump(mode="json")


def test_flips_alone_are_registered_too(world: World) -> None:
    job = run(world, evaluation={"flips": True})
    head = state_of(world.store.job(job)).head
    tell(world, job, [report(job, 1, head, seed, calibrate=False) for seed in range(3)])
    assert world.artifacts.registered[0].use == Use(flips=True)


def test_counts_of_another_critical_class_are_refused(world: World) -> None:
    job = run(world, calibrate=True)
    told = report(job, 1, state_of(world.store.job(job)).head, 1)
    assert told.calibration is not None
    first, second = told.calibration.halves
    taken = next(at for at, number in enumerate(first.positives or ()) if number)
    moved = list(first.positives or ()), list(first.negatives or ())
    moved[0][taken] -= 1
    moved[1][taken] += 1
    changed = first.model_copy(update={"positives": tuple(moved[0]), "negatives": tuple(moved[1])})
    calibration = told.calibration.model_copy(update={"halves": (changed, second)})
    with pytest.raises(ReportMismatch, match="critical class"):
        world.coordinator.report(HOSPITALS[0], told.model_copy(update={"calibration": calibration}))

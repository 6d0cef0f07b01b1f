"""Jobs that tell other classes apart: who is asked, what reports must have, and what is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import scores, views
from concilia_aggregator.errors import ReportMismatch
from concilia_aggregator.store import state_of
from concilia_kit.classification import LESIONS, Classification, Disease, Turns
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.training import EVALUATE_TASK, SCORE_BINS, TRAIN_TASK, EvaluationReport

from .conftest import FolderArtifacts, MemoryLedger
from .test_aggregator_service import HOSPITALS, REGISTRATION, World, near

CHEST = Classification(
    name="chest",
    classes=tuple(Disease(code=code, name=code.title()) for code in ("normal", "pneumonia", "tuberculosis")),
    critical="tuberculosis",
    turns=Turns.NONE,
)
CHESTS = REGISTRATION.model_copy(
    update={"classification": CHEST, "training_images": (9, 9, 9), "held_out_images": (2, 2, 2)}
)


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    """Of three hospitals the first two have pictures of chests."""
    made = World(tmp_path, ledger, artifacts)
    for hospital in HOSPITALS[:2]:
        made.store.register(hospital, CHESTS)
    return made


def report_of(job: str, digest: str, confusion: list[list[int]], round_: int = 0) -> EvaluationReport:
    images = sum(map(sum, confusion))

    def bins(count: int) -> list[int]:
        return [count, *[0] * (SCORE_BINS - 1)]

    return EvaluationReport.model_validate(
        {
            "job": job,
            "round": round_,
            "model": digest,
            "confusion": confusion,
            "positives": [bins(sum(row)) for row in confusion],
            "negatives": [bins(images - sum(row)) for row in confusion],
            "loss_sum": 1.0,
            "images": images,
            "lesions": images,
            "overlapping_lesions": 0,
            "skipped_images": 0,
            "seconds": 0.1,
        }
    )


RIGHT = [[4, 0, 0], [0, 4, 0], [0, 3, 1]]


def test_only_hospitals_with_such_pictures_are_asked(world: World) -> None:
    assert world.store.heard(60) == world.store.heard(60, LESIONS) == {HOSPITALS[2]}
    assert world.store.heard(60, CHEST) == set(HOSPITALS[:2])
    assert world.store.heard(60, CHEST.model_copy(update={"turns": Turns.FREE})) == set()
    assert [world.store.is_of(each, CHEST) for each in HOSPITALS] == [True, True, False]
    assert [world.store.is_of(each, LESIONS) for each in HOSPITALS] == [False, False, True]
    assert world.store.is_of("0x" + "99" * 20, LESIONS)  # it said nothing
    job = world.create(classification=CHEST, rounds=1)
    world.coordinator.advance(job)
    asked = [(who, name, task["classification"]["name"]) for who, name, task in world.sent]  # type: ignore[index]
    assert asked == [(who, EVALUATE_TASK, "chest") for who in sorted(HOSPITALS[:2])]


def test_a_job_of_another_classification_runs_to_its_published_model(world: World) -> None:
    job = world.create(classification=CHEST, rounds=1)
    world.coordinator.advance(job)
    head = state_of(world.store.job(job)).head
    for hospital in HOSPITALS[:2]:
        world.coordinator.report(hospital, report_of(job, head, RIGHT))
    world.coordinator.advance(job)
    assert {who for who, name, _ in world.sent if name == TRAIN_TASK} == set(HOSPITALS[:2])
    world.submit(job, 1, {who: near(at) for at, who in enumerate(HOSPITALS[:2])})
    head = state_of(world.store.job(job)).head
    for hospital in HOSPITALS[:2]:
        world.coordinator.report(hospital, report_of(job, head, RIGHT, 1))
    world.coordinator.advance(job)
    assert world.phase(job) is Phase.FINISHED
    assert world.artifacts.registered[0].classification == CHEST
    view = views.job(world.store, world.store.job(job))
    assert view.spec.classification == CHEST
    assert view.rounds[1].confusion == ((8, 0, 0), (0, 8, 0), (0, 6, 2))
    for told in (view.rounds[1].pooled, view.rounds[1].sites[0].scores):
        assert told is not None
        assert told.recall == (1.0, 1.0, 0.25)
        assert told.melanoma_recall == 0.25  # of the class that must not be missed
    assert JobSpec.model_validate(world.store.job(job).spec).classification == CHEST


def test_a_report_must_have_the_jobs_classes(world: World) -> None:
    job = world.create(classification=CHEST, rounds=1)
    world.coordinator.advance(job)
    head = state_of(world.store.job(job)).head
    for wrong in ([[1, 0], [0, 1]], np.eye(7, dtype=int).tolist()):
        with pytest.raises(ReportMismatch, match="tells 3 classes apart"):
            world.coordinator.report(HOSPITALS[0], report_of(job, head, wrong))
    world.coordinator.report(HOSPITALS[0], report_of(job, head, RIGHT))
    lesions = world.create(rounds=1)
    with pytest.raises(ReportMismatch, match="tells 7 classes apart, the report 3"):
        world.coordinator.report(HOSPITALS[2], report_of(lesions, world.initial, RIGHT))


@pytest.mark.parametrize(
    ("critical", "expected"), [("normal", 1.0), ("pneumonia", 0.5), ("tuberculosis", 0.25), (None, None)]
)
def test_the_critical_class_is_the_classifications(critical: str | None, expected: float | None) -> None:
    named: Any = CHEST.model_copy(update={"critical": critical})
    seen = report_of("0" * 64, "1" * 64, [[4, 0, 0], [2, 2, 0], [0, 3, 1]])
    found = scores.pooled([seen], named)
    assert found is not None
    assert found.melanoma_recall == expected
    assert found.balanced_accuracy == pytest.approx((1 + 0.5 + 0.25) / 3)


@pytest.mark.parametrize(("metrics", "phase"), [(("sensitivity:normal",), Phase.FINISHED), (None, Phase.TRAINING)])
def test_a_target_is_of_what_the_classification_is_judged_by(
    world: World, metrics: tuple[str, ...] | None, phase: Phase
) -> None:
    """Recall of the first class is 1, balanced accuracy 0.75."""
    told = CHEST if metrics is None else CHEST.model_copy(update={"metrics": metrics})
    for hospital in HOSPITALS[:2]:
        world.store.register(hospital, CHESTS.model_copy(update={"classification": told}))
    job = world.create(classification=told, rounds=3, target=0.9)
    world.coordinator.advance(job)
    for round_ in (0, 1):
        if round_:
            world.submit(job, round_, {who: near(at) for at, who in enumerate(HOSPITALS[:2])})
        head = state_of(world.store.job(job)).head
        for hospital in HOSPITALS[:2]:
            world.coordinator.report(hospital, report_of(job, head, RIGHT, round_))
        world.coordinator.advance(job)
    assert world.phase(job) is phase
    assert state_of(world.store.job(job)).closed == 1

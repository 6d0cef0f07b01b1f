"""Whole jobs against working doubles: happy path, liars, latecomers, crashes between effect and record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import main, rounds, views
from concilia_aggregator.errors import InitialMissing, JobEnded, JobNotFound, ReportMismatch, RoundNotFound
from concilia_aggregator.folder import Folder
from concilia_aggregator.metrics import RoundMetrics
from concilia_aggregator.screening import Limits
from concilia_aggregator.service import Coordinator
from concilia_aggregator.store import StaleState, Store, state_of
from concilia_kit import database, digests
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.changes import Change, JobChange, ProgressChange, RoundChange
from concilia_kit.wire.jobs import JobSpec, Phase, Recording
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.progress import Progress, Stage
from concilia_kit.wire.training import EVALUATE_TASK, SCORE_BINS, TRAIN_TASK, EvaluationReport
from prometheus_client import CollectorRegistry

from .conftest import FolderArtifacts, MemoryLedger, address, model

HOSPITALS = [address(i) for i in (3, 1, 2)]


def report(job: str, round_: int, digest: str, right: int = 1) -> EvaluationReport:
    """One image of class 0 for each of two outcomes: `right` hits among two."""
    confusion = np.zeros((7, 7), int)
    confusion[0, 0], confusion[0, 1] = right, 2 - right
    positives, negatives = np.zeros((7, SCORE_BINS), int), np.zeros((7, SCORE_BINS), int)
    positives[0, 5], negatives[1:, 0] = 2, 2
    return EvaluationReport.model_validate(
        {
            "job": job,
            "round": round_,
            "model": digest,
            "confusion": confusion.tolist(),
            "positives": positives.tolist(),
            "negatives": negatives.tolist(),
            "loss_sum": 1.0,
            "images": 2,
            "lesions": 2,
            "overlapping_lesions": 0,
            "skipped_images": 0,
            "seconds": 0.1,
        }
    )


REGISTRATION = NodeRegistration(
    site="ward",
    source="drawn lesions",
    training_images=(10,) * 7,
    held_out_images=(2,) * 7,
    training_lesions=60,
    held_out_lesions=12,
    overlapping_lesions=0,
    skipped_images=0,
)


class World:
    """A coordinator with its doubles, and hospitals that answer."""

    def __init__(self, folder: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> None:
        self.engine = database.engine(f"sqlite:///{folder}/aggregator.db")
        database.migrate(self.engine, main.MIGRATIONS)
        self.store = Store(self.engine)
        self.ledger, self.artifacts = ledger, artifacts
        self.sent: list[tuple[str, str, dict[str, object]]] = []
        limits = Limits(max_samples=1000, max_norm_ratio=10)
        self.registry = CollectorRegistry()
        measured = RoundMetrics(self.registry)
        self.folder = Folder(artifacts, ledger, folder / "work", limits, measured, noise=self.store.noise)
        self.told: list[tuple[str, Change, Any]] = []
        self.coordinator = Coordinator(
            self.store,
            ledger,
            artifacts,
            self.folder,
            lambda *task: self.sent.append(task),
            60,
            "concilia-aggregator 1.2.3",
            measured,
            lambda job, change, what: self.told.append((job, change, what)),
        )
        self.initial = artifacts.add(model(0))
        ledger.members.update(HOSPITALS)
        for hospital in HOSPITALS:
            self.store.register(hospital, REGISTRATION)

    def create(self, **changes: Any) -> str:
        fields = {"name": "j", "initial": self.initial, "quorum": 2, "rounds": 2, "architecture": "resnet18", **changes}
        return self.coordinator.create(JobSpec.model_validate(fields), HOSPITALS[0])

    def phase(self, job: str) -> Phase:
        return state_of(self.store.job(job)).phase

    def evaluate(self, job: str, round_: int, right: int = 1) -> None:
        digest = state_of(self.store.job(job)).head
        for hospital in HOSPITALS:
            self.coordinator.report(hospital, report(job, round_, digest, right))
        self.coordinator.advance(job)

    def submit(self, job: str, round_: int, updates: dict[str, dict[str, Any]], samples: int = 10) -> None:
        for hospital, tensors in updates.items():
            self.ledger.submit(job, round_, hospital, self.artifacts.add(tensors), samples)
        self.coordinator.advance(job)


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    return World(tmp_path, ledger, artifacts)


def near(seed: int) -> dict[str, Any]:
    tensors = model(0)
    tensors["layer.weight"] = tensors["layer.weight"] + np.float32(0.01 * seed)
    tensors["norm.num_batches_tracked"] = np.array(seed, np.int64)
    return tensors


def test_a_job_runs_to_its_published_model(world: World) -> None:
    job = world.create()
    world.coordinator.advance(job)
    assert [name for _, name, _ in world.sent] == [EVALUATE_TASK] * 3
    world.evaluate(job, 0, right=0)
    assert world.phase(job) is Phase.TRAINING
    for round_ in (1, 2):
        trained = [(who, task) for who, name, task in world.sent if name == TRAIN_TASK and task["round"] == round_]
        assert sorted(who for who, _ in trained) == sorted(HOSPITALS)
        assert {task["base"] for _, task in trained} == {state_of(world.store.job(job)).head}
        world.submit(job, round_, {who: near(i + round_) for i, who in enumerate(HOSPITALS)})
        assert world.phase(job) is Phase.EVALUATING
        world.evaluate(job, round_, right=2)
    assert world.phase(job) is Phase.FINISHED
    head = state_of(world.store.job(job)).head
    assert world.ledger.published[job] == head
    assert world.artifacts.registered[0].digest == head
    first = world.ledger.rounds[job, 1]
    assert first.contributions == digests.of_contributions(
        digests.Contribution(item.update.hospital, item.update.digest, 10) for item in reversed(first.updates)
    )
    folded = TensorFile.open(world.artifacts.fetch(first.global_digest or ""), world.artifacts.keys)
    expected = np.mean([near(i + 1)["layer.weight"].astype(np.float64) for i in range(3)], axis=0)
    np.testing.assert_allclose(folded.tensor("layer.weight"), expected, rtol=1e-6)
    assert folded.tensor("norm.num_batches_tracked") == 3
    view = views.job(world.store, world.store.job(job))
    assert [item.accepted for item in view.rounds] == [0, 3, 3]
    assert view.rounds[0].pooled is not None
    assert view.rounds[0].pooled.balanced_accuracy == 0.0
    assert view.rounds[2].pooled is not None
    assert view.rounds[2].pooled.balanced_accuracy == 1.0
    assert view.rounds[1].seconds_moving == pytest.approx(0.9)
    assert view.rounds[1].overlapping_lesions == 0


def test_a_target_ends_the_job_early(world: World) -> None:
    job = world.create(target=0.9, rounds=5)
    world.coordinator.advance(job)
    world.evaluate(job, 0, right=2)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    world.evaluate(job, 1, right=2)
    assert world.phase(job) is Phase.FINISHED


def test_liars_are_named_on_the_ledger_and_left_out(world: World) -> None:
    job = world.create()
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    nan = near(1)
    nan["layer.bias"][3] = np.nan
    world.submit(job, 1, {HOSPITALS[0]: near(1), HOSPITALS[1]: nan})
    world.ledger.submit(job, 1, HOSPITALS[2], world.artifacts.add(near(2)), samples=10**9)
    world.coordinator.advance(job)
    reasons = {item.update.hospital: item.reason for item in world.ledger.rounds[job, 1].updates}
    assert [reasons[who] and reasons[who].name for who in HOSPITALS] == [None, "NON_FINITE", "SAMPLE_COUNT"]
    # one good update is below the quorum of two, and nobody is left who could come
    assert world.ledger.rounds[job, 1].status is RoundStatus.ABORTED
    assert world.phase(job) is Phase.TRAINING
    assert world.ledger.rounds[job, 2].base == world.initial


@pytest.mark.parametrize("fate", ["missing", "flipped", "flipped and brought again"])
def test_bytes_that_are_not_what_was_signed(world: World, fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.create()
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    digest = world.artifacts.add(near(5))
    world.ledger.submit(job, 1, HOSPITALS[0], digest)
    path = world.artifacts.fetch(digest)
    content = path.read_bytes()
    if fate == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    world.submit(job, 1, {who: near(1) for who in HOSPITALS[1:]})
    if fate != "missing":
        assert world.ledger.rounds[job, 1].status is RoundStatus.OPEN
        assert "bring them again" in state_of(world.store.job(job)).detail
        if fate == "flipped":
            deadline = world.ledger.rounds[job, 1].deadline
            monkeypatch.setattr(time, "time", lambda: deadline + 5.0)
        else:
            path.write_bytes(content)
            world.artifacts.put_aside.clear()
        world.coordinator.advance(job)
    closed = world.ledger.rounds[job, 1]
    assert closed.status is RoundStatus.CLOSED
    left_out = [] if fate == "flipped and brought again" else ["ARTIFACT_MISSING"]
    assert [item.reason.name for item in closed.updates if item.reason] == left_out


def test_a_head_that_was_lost_is_made_again_while_hospitals_wait_for_it(world: World) -> None:
    job = world.create(rounds=3)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    world.submit(job, 1, {who: near(number) for number, who in enumerate(HOSPITALS)})
    head = state_of(world.store.job(job)).head
    path = world.artifacts.fetch(head)
    content = world.artifacts.content(head)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not world.artifacts.is_intact(head)
    world.coordinator._seen_to.clear()
    world.coordinator.advance(job)
    assert world.artifacts.content(head) == content


def test_a_malformed_file_is_rejected(world: World) -> None:
    job = world.create()
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    data = b"\x08\x00\x00\x00\x00\x00\x00\x00not json"
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    (world.artifacts.directory / digest).write_bytes(data)
    world.ledger.submit(job, 1, HOSPITALS[0], digest)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS[1:]})
    assert [item.reason.name for item in world.ledger.rounds[job, 1].updates if item.reason] == ["MALFORMED_FILE"]


def test_an_update_confirmed_while_folding_is_folded_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.create(quorum=1)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    late = world.artifacts.add(near(9))
    plain = world.folder.fold

    def slow(recorded: Any, *how: Any) -> str:
        digest = plain(recorded, *how)
        if len(recorded.updates) == 3:
            world.ledger.members.add(address(9))
            world.ledger.submit(job, 1, address(9), late)
        return digest

    monkeypatch.setattr(world.folder, "fold", slow)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    closed = world.ledger.rounds[job, 1]
    assert closed.status is RoundStatus.CLOSED
    assert len(closed.accepted()) == 4
    contributed = [
        digests.Contribution(item.update.hospital, item.update.digest, item.update.samples) for item in closed.updates
    ]
    assert closed.contributions == digests.of_contributions(contributed)


@pytest.mark.parametrize("method", ["open", "commit", "reject", "close", "publish", "put", "register"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("recording", Recording)
def test_a_crash_at_any_effect_changes_nothing_about_the_outcome(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str, when: str, recording: Recording
) -> None:
    owner: Any = world.artifacts if method in {"put", "register"} else world.ledger
    effect: Callable[..., Any] = getattr(owner, method)
    crashes = iter([True])

    def crashing(*arguments: Any) -> Any:
        crash = next(crashes, False)
        if crash and when == "before":
            raise Unavailable("down")
        result = effect(*arguments)
        if crash:
            raise Unavailable("down")
        return result

    monkeypatch.setattr(owner, method, crashing)

    def advance(job: str) -> None:
        try:
            plain(job)
        except Unavailable:
            plain(job)

    plain = world.coordinator.advance
    monkeypatch.setattr(world.coordinator, "advance", advance)
    job = world.create(recording=recording)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    bad = near(1)
    bad["layer.bias"][0] = np.inf
    world.submit(job, 1, {HOSPITALS[0]: bad, HOSPITALS[1]: near(1), HOSPITALS[2]: near(2)})
    world.evaluate(job, 1)
    world.submit(job, 2, {who: near(i) for i, who in enumerate(HOSPITALS)})
    world.evaluate(job, 2)
    never = method == "commit" and recording is Recording.EACH
    assert (next(crashes, None) is None) is not never, "the crash never happened"
    assert world.phase(job) is Phase.FINISHED
    assert [len(world.ledger.rounds[job, n].accepted()) for n in (1, 2)] == [2, 3]
    assert len(world.ledger.rounds) == 2


def test_stopping(world: World) -> None:
    job = world.create()
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    world.coordinator.stop(job)
    world.coordinator.advance(job)
    assert world.phase(job) is Phase.STOPPED
    assert world.ledger.rounds[job, 1].status is RoundStatus.ABORTED
    with pytest.raises(JobEnded):
        world.coordinator.stop(job)


def test_a_paused_job_ends_its_round_and_opens_no_other(world: World) -> None:
    job = world.create()
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    for _ in range(2):
        world.coordinator.pause(job)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    world.evaluate(job, 1)
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED
    view = views.job(world.store, world.store.job(job))
    assert (view.phase, view.paused, view.detail) == (Phase.OPENING, True, rounds.PAUSED)
    assert (job, 2) not in world.ledger.rounds
    for _ in range(2):
        world.coordinator.resume(job)
    world.coordinator.advance(job)
    view = views.job(world.store, world.store.job(job))
    assert (view.phase, view.paused) == (Phase.TRAINING, False)
    world.coordinator.pause(job)
    world.coordinator.stop(job)
    world.coordinator.advance(job)
    assert world.phase(job) is Phase.STOPPED
    for change in (world.coordinator.pause, world.coordinator.resume):
        with pytest.raises(JobEnded):
            change(job)
        with pytest.raises(JobNotFound):
            change("d" * 64)


def test_a_state_that_was_stored_before_jobs_could_be_paused(world: World) -> None:
    row = world.store.job(world.create())
    before = replace(row, state={key: value for key, value in row.state.items() if key != "paused"})
    assert state_of(before).paused is False


def test_what_a_person_can_see_change_is_told(world: World) -> None:
    job = world.create(rounds=1)
    world.coordinator.advance(job)
    seen = JobChange(phase=Phase.BASELINE, round=0, detail="3 of 3 hospitals still evaluate", paused=False)
    assert world.told == [(job, Change.JOB, seen)]
    world.coordinator.advance(job)
    assert len(world.told) == 1, "nothing changed, nothing is said"
    world.evaluate(job, 0)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    world.evaluate(job, 1)
    told = {change: [what for _, kind, what in world.told if kind is change] for change in Change}
    assert told[Change.ROUND] == [RoundChange(round=1)] * 2
    assert {(what.round, what.hospital) for what in told[Change.EVALUATION]} == {
        (number, who) for number in (0, 1) for who in HOSPITALS
    }
    assert told[Change.JOB][-1].phase is Phase.FINISHED
    assert {who for who, _, _ in world.told} == {job}
    progress = Progress(stage=Stage.TRAINING, fraction=0.5)
    world.coordinator.progress(job, 1, HOSPITALS[0], progress)
    assert world.told[-1][2] == ProgressChange(round=1, hospital=HOSPITALS[0], progress=progress)


def test_what_is_not_saved_is_not_told(world: World) -> None:
    job = world.create()
    stale = world.store.job(job)
    world.store.save(stale, state_of(stale))
    with pytest.raises(StaleState):
        world.coordinator._save(stale, rounds.pause(state_of(stale)))
    assert world.told == []


def test_what_is_refused(world: World) -> None:
    with pytest.raises(InitialMissing):
        world.create(initial="f" * 64)
    job = world.create()
    with pytest.raises(RoundNotFound):
        world.coordinator.report(HOSPITALS[0], report(job, 4, world.initial))
    with pytest.raises(ReportMismatch):
        world.coordinator.report(HOSPITALS[0], report(job, 0, "e" * 64))
    with pytest.raises(JobNotFound):
        world.coordinator.report(HOSPITALS[0], report("d" * 64, 0, world.initial))


def test_a_second_writer_of_one_state_is_refused(world: World) -> None:
    row = world.store.job(world.create())
    world.store.save(row, state_of(row))
    with pytest.raises(StaleState):
        world.store.save(row, state_of(row))


def test_tasks_survive_a_broker_that_is_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any) -> None:
        raise ConnectionError

    job = world.create()
    monkeypatch.setattr(world.coordinator, "_send", down)
    with pytest.raises(ConnectionError):
        world.coordinator.advance(job)
    monkeypatch.undo()
    world.coordinator.advance(job)
    assert sorted(who for who, _, _ in world.sent) == sorted(HOSPITALS)


def test_a_model_that_is_refused_for_good_ends_its_job_and_one_that_is_refused_for_now_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [Problem("busy", status=503, code="no_networks"), Problem("no", status=422, code="weights_do_not_fit")]

    def refuse(_registration: object) -> None:
        raise refusals.pop(0)

    monkeypatch.setattr(world.artifacts, "register", refuse)
    job = world.create(rounds=1)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    with pytest.raises(Problem):
        world.evaluate(job, 1)
    assert world.phase(job) is Phase.PUBLISHING
    world.coordinator.advance(job)
    assert world.phase(job) is Phase.FAILED
    assert "not served" in state_of(world.store.job(job)).detail
    assert not refusals

"""What is counted of rounds that end in every way there is, moved by a real coordinator against working doubles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator.errors import JobEnded
from concilia_aggregator.rounds import MAX_ABORTED
from concilia_aggregator.store import StaleState
from concilia_kit.problems import Unavailable
from concilia_kit.wire.jobs import Phase

from .conftest import FolderArtifacts, MemoryLedger, address
from .test_aggregator_service import HOSPITALS, World, near


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    return World(tmp_path, ledger, artifacts)


def training(world: World, **changes: Any) -> str:
    """A job whose first round is open."""
    job = world.create(**changes)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    assert world.phase(job) is Phase.TRAINING
    return job


def value(world: World, name: str, **labels: str) -> float:
    return world.registry.get_sample_value(f"concilia_{name}", labels) or 0.0


def ended(world: World) -> tuple[float, float]:
    return value(world, "rounds_total", outcome="closed"), value(world, "rounds_total", outcome="aborted")


def test_a_finished_job_of_two_rounds(world: World) -> None:
    job = training(world)
    folded = 0
    for number in (1, 2):
        world.submit(job, number, {who: near(i + number) for i, who in enumerate(HOSPITALS)})
        updates = world.ledger.rounds[job, number].updates
        folded += sum(len(world.artifacts.content(item.update.digest)) for item in updates)
        assert ended(world) == (number, 0)
        world.evaluate(job, number)
    assert world.phase(job) is Phase.FINISHED
    assert value(world, "updates_total", outcome="accepted", reason="none") == 6
    assert value(world, "update_bytes_total") == folded > 0
    for phase in ("training", "moving", "chain", "folding", "evaluating"):
        assert value(world, "round_seconds_count", phase=phase) == 2, phase
    assert value(world, "round_seconds_sum", phase="training") == 4.0  # two seconds each, by the nodes' own word
    assert value(world, "round_seconds_sum", phase="moving") == pytest.approx(1.8)


def test_rejections_are_counted_once_and_by_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)
    broken = near(1)
    broken["layer.bias"][3] = np.nan

    def down(*_: Any) -> None:
        raise Unavailable("not now")

    monkeypatch.setattr(world.ledger, "close", down)
    with pytest.raises(Unavailable):
        world.submit(job, 1, {HOSPITALS[0]: near(1), HOSPITALS[1]: near(2), HOSPITALS[2]: broken})
    assert value(world, "updates_total", outcome="rejected", reason="non_finite") == 1
    assert ended(world) == (0, 0)
    monkeypatch.undo()
    world.coordinator.advance(job)
    assert ended(world) == (1, 0)
    assert value(world, "updates_total", outcome="rejected", reason="non_finite") == 1
    assert value(world, "updates_total", outcome="accepted", reason="none") == 2


def test_a_round_that_is_folded_again_counts_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world, quorum=1)
    late = world.artifacts.add(near(9))
    plain, folds = world.folder.fold, []

    def slow(recorded: Any, *how: Any) -> str:
        folds.append(len(recorded.updates))
        digest = plain(recorded, *how)
        if len(folds) == 1:
            world.ledger.members.add(address(9))
            world.ledger.submit(job, 1, address(9), late)
        return digest

    monkeypatch.setattr(world.folder, "fold", slow)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    assert folds == [3, 4]
    assert ended(world) == (1, 0)
    assert value(world, "updates_total", outcome="accepted", reason="none") == 4


def test_what_another_worker_moved_is_not_counted_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)
    plain = world.store.save

    def overtaken(row: Any, state: Any, **more: Any) -> None:
        plain(row, state, **more)
        if state.phase is Phase.EVALUATING:
            raise StaleState(row.id)

    monkeypatch.setattr(world.store, "save", overtaken)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    assert world.phase(job) is Phase.EVALUATING
    assert ended(world) == (0, 0)
    assert value(world, "updates_total", outcome="accepted", reason="none") == 0


def test_rounds_given_up_for_want_of_a_quorum(world: World) -> None:
    job = training(world)
    for number in range(1, MAX_ABORTED + 1):
        liars = {who: near(1) | {"layer.bias": np.full(7, np.inf, np.float32)} for who in HOSPITALS}
        world.submit(job, number, liars)
        assert ended(world) == (0, number)
    assert world.phase(job) is Phase.FAILED
    assert value(world, "round_seconds_count", phase="training") == 0


def test_a_round_aborted_on_the_ledger_by_somebody_else(world: World) -> None:
    job = training(world)
    world.ledger.abort(job, 1)
    world.coordinator.advance(job)
    assert ended(world) == (0, 1)


def test_stopping_gives_up_an_open_round_and_only_that(world: World) -> None:
    first, second = training(world), world.create()
    for job in (first, second):
        world.coordinator.stop(job)
        world.coordinator.advance(job)
        assert world.phase(job) is Phase.STOPPED
    assert ended(world) == (0, 1)
    with pytest.raises(JobEnded):
        world.coordinator.stop(first)
    assert ended(world) == (0, 1)


def test_jobs_and_nodes_as_a_scrape_reads_them(world: World) -> None:
    training(world)
    world.create()
    phases = world.store.phases()
    assert set(phases) == {phase.value for phase in Phase}
    assert {phase: count for phase, count in phases.items() if count} == {"training": 1, "baseline": 1}
    assert world.store.presence(60) == {"live": 3, "silent": 0}
    assert world.store.presence(-60) == {"live": 0, "silent": 3}

"""Whole secure rounds against working doubles: all there, drop-outs at each stage, too few, restarts at every stage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from concilia_aggregator import tables
from concilia_aggregator.assignments import Assignments
from concilia_aggregator.folding import Recipe
from concilia_aggregator.masking.rules import roster_of
from concilia_aggregator.orders import Orders
from concilia_kit.masking import graph
from concilia_kit.problems import Unavailable
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import Phase, Recording
from concilia_kit.wire.masking import Masked, Stage
from concilia_kit.wire.training import TRAIN_TASK, UNMASK_TASK
from eth_account import Account

from .conftest import METRICS, FolderArtifacts, MemoryLedger
from .secure_world import DEADLINE_SECONDS, DOMAIN, STAGE_SECONDS, Hospital, SecureWorld, near

COORDINATOR = Account.create()


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, real = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)

    def passes(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> SecureWorld:
    return SecureWorld(tmp_path, ledger, artifacts)


def left_behind(world: SecureWorld) -> int:
    with world.engine.begin() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(tables.masking_messages)).scalar_one())


def is_mean_of(world: SecureWorld, job: str, hospitals: list[Hospital]) -> None:
    folded = world.global_model(job)
    masking = Recipe.of(folded).masking
    assert masking is not None
    assert [*masking.survivors] == [each.address for each in hospitals]
    expected = world.expected(job, hospitals, masking.roster)
    for name in ("layer.weight", "layer.bias"):
        np.testing.assert_allclose(folded.tensor(name), expected[name], rtol=1e-6, atol=1e-7)
    assert folded.tensor("norm.num_batches_tracked") == 0
    assert left_behind(world) == 0


@pytest.mark.parametrize("recording", Recording)
def test_a_secure_round_folds_to_the_mean_of_its_updates(world: SecureWorld, recording: Recording) -> None:
    job = world.create(recording=recording)
    asked = [task for _, name, task in world.sent if name == TRAIN_TASK]
    assert [task["secure"]["stage_seconds"] for task in asked] == [STAGE_SECONDS] * 4  # type: ignore[index]
    world.round(job)
    assert world.state(job).phase is Phase.EVALUATING
    unmasked = [(who, task) for who, name, task in world.sent if name == UNMASK_TASK]
    assert [who for who, _ in unmasked] == [each.address for each in world.hospitals]
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED
    is_mean_of(world, job, world.hospitals)
    for each in world.ledger.rounds[job, 1].updates:  # which alone are noise
        words = world.artifacts.content(each.update.digest)
        assert len(set(words[-160:])) > 70


def test_nothing_of_a_secure_round_is_summed_ahead(world: SecureWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        """Sums of masked words are of nothing that anybody asks for."""

        def ask(self, _recorded: object) -> None:
            raise AssertionError("asked for a sum")

        def ahead(self, _recorded: object) -> None:
            raise AssertionError("looked for a sum")

        def release(self, _recorded: object) -> None:
            """There is nothing."""

    monkeypatch.setattr(world.coordinator._folder, "_summing", Never())
    job = world.create()
    world.round(job)
    is_mean_of(world, job, world.hospitals)


@pytest.mark.parametrize("leaves", [Stage.KEYS, Stage.SHARES, Stage.INPUTS, Stage.CONSENT, Stage.REVEAL])
def test_one_of_four_may_drop_out_at_any_stage(world: SecureWorld, clock: Clock, leaves: Stage) -> None:
    job = world.create()
    world.hospitals[1].leaves = leaves
    world.round(job)
    for seconds in (STAGE_SECONDS + 1, DEADLINE_SECONDS):
        if world.state(job).phase is Phase.TRAINING:
            clock.passes(seconds)
            world.advance(job)
            world.round(job)
    late = leaves in {Stage.CONSENT, Stage.REVEAL}  # its update is there, and enough others unmask it
    is_mean_of(world, job, [each for each in world.hospitals if late or each is not world.hospitals[1]])
    masking = Recipe.of(world.global_model(job)).masking
    assert masking is not None
    assert len(masking.roster.members) == (3 if leaves is Stage.KEYS else 4)
    assert len(masking.sharers) == (3 if leaves in {Stage.KEYS, Stage.SHARES} else 4)
    assert set(masking.keys) == ({world.hospitals[1].address} if leaves is Stage.INPUTS else set())


@pytest.mark.parametrize("leaves", [Stage.KEYS, Stage.SHARES, Stage.INPUTS, Stage.CONSENT, Stage.REVEAL])
def test_below_the_threshold_nothing_comes_out(world: SecureWorld, clock: Clock, leaves: Stage) -> None:
    job = world.create()
    before = {path.name for path in world.artifacts.directory.iterdir()}
    for each in world.hospitals[:2]:
        each.leaves = leaves
    world.round(job)
    for seconds in (STAGE_SECONDS + 1, STAGE_SECONDS, DEADLINE_SECONDS):
        if world.ledger.rounds[job, 1].status is RoundStatus.OPEN:
            clock.passes(seconds)
            world.advance(job)
            world.round(job)
    assert world.room(job).stage is Stage.ABORTED
    assert world.room(job).unmasking is None
    assert world.ledger.rounds[job, 1].status is RoundStatus.ABORTED
    assert world.state(job).aborted == 1
    assert left_behind(world) == 0
    uploaded = {item.update.digest for item in world.ledger.rounds[job, 1].updates}
    assert {path.name for path in world.artifacts.directory.iterdir()} == before | uploaded
    if leaves is not Stage.REVEAL:
        assert not any(each.revealed for each in world.hospitals)


def test_a_job_is_not_begun_by_two(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> None:
    world = SecureWorld(tmp_path, ledger, artifacts, hospitals=2)
    job = world.create()
    assert world.state(job).phase is Phase.OPENING
    assert world.state(job).detail == "2 hospitals ready, 3 needed"


@pytest.mark.parametrize("recording", Recording)
def test_a_worker_that_starts_anew_at_any_moment_comes_to_the_same(
    world: SecureWorld, monkeypatch: pytest.MonkeyPatch, recording: Recording
) -> None:
    job = world.create(recording=recording)
    stages = set()

    def act(*arguments: Any) -> None:
        world.start()
        plain(*arguments)
        world.advance(job)
        stages.add(world.room(job).stage)

    plain = world.act
    monkeypatch.setattr(world, "act", act)
    world.round(job)
    assert stages == {*Stage} - {Stage.ABORTED}
    is_mean_of(world, job, world.hospitals)


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        ("rooms", "move"),
        ("rooms", "open"),
        ("rooms", "close"),
        ("store", "save"),
        ("ledger", "open"),
        ("ledger", "close"),
        ("artifacts", "put"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_effect_changes_nothing_about_the_outcome(
    world: SecureWorld, monkeypatch: pytest.MonkeyPatch, owner: str, method: str, when: str
) -> None:
    owners: dict[str, Any] = {
        "rooms": world.store.masking,
        "store": world.store,
        "ledger": world.ledger,
        "artifacts": world.artifacts,
    }
    effect, calls, sums = getattr(owners[owner], method), 0, set()

    def crashing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        is_odd = calls % 2 == 1
        if is_odd and when == "before":
            raise Unavailable("down")
        result = effect(*arguments, **named)
        if is_odd:
            raise Unavailable("down")
        return result

    def start() -> None:
        room = world.store.masking.get(job, 1)
        if room is not None and room.survivors is not None:
            sums.add(room.survivors)
        plain()

    plain = world.start
    monkeypatch.setattr(world, "start", start)
    job = world.create(begins=False)
    monkeypatch.setattr(owners[owner], method, crashing)
    world.advance(job)
    world.round(job)
    assert calls > 0
    assert len(sums) <= 1
    is_mean_of(world, job, world.hospitals)


def test_groups_are_folded_by_a_robust_strategy_as_if_their_means_were_the_updates(
    tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts
) -> None:
    world = SecureWorld(tmp_path, ledger, artifacts, hospitals=9)
    job = world.create(secure={"group": 3}, strategy={"name": "median"})
    world.round(job)
    masking = Recipe.of(world.global_model(job)).masking
    assert masking is not None
    groups = [[world.hospitals[member] for member in group] for group in graph(masking.roster).groups]
    assert [len(each) for each in groups] == [3, 3, 3]
    means = [world.expected(job, group, masking.roster) for group in groups]
    for name in ("layer.weight", "layer.bias"):
        median = np.median([mean[name].astype(np.float32) for mean in means], axis=0)
        np.testing.assert_allclose(world.global_model(job).tensor(name), median, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_strategies_that_remember_go_by_the_sum_alone(world: SecureWorld, strategy: str) -> None:
    job = world.create(strategy={"name": strategy})
    world.round(job)
    recipe = Recipe.of(world.global_model(job))
    assert recipe.state is not None
    assert recipe.facts is None
    assert world.artifacts.exists(recipe.state)


@pytest.mark.parametrize("strategy", ["geometric_median", "krum", "norm_clipping"])
def test_strategies_that_weigh_updates_weigh_groups(
    tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts, strategy: str
) -> None:
    world = SecureWorld(tmp_path, ledger, artifacts, hospitals=9)
    job = world.create(secure={"group": 3}, strategy={"name": strategy})
    world.round(job)
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED


def test_a_head_that_was_lost_is_made_again_after_its_round_is_over(world: SecureWorld) -> None:
    job = world.create(rounds=3, evaluate_every=3)
    world.round(job)
    assert world.state(job).phase is Phase.TRAINING
    head = world.state(job).head
    content = world.artifacts.content(head)
    world.artifacts.put_aside.add(head)
    (world.artifacts.directory / head).unlink()
    world.start()
    world.advance(job)
    assert world.artifacts.content(head) == content


def reasons(world: SecureWorld, job: str) -> dict[str, str | None]:
    updates = world.ledger.rounds[job, 1].updates
    return {item.update.hospital: item.reason and item.reason.name for item in updates}


@pytest.mark.parametrize("when", [Stage.INPUTS, Stage.CONSENT, Stage.REVEAL])
def test_who_handed_out_no_shares_is_rejected_and_holds_nobody_up(
    world: SecureWorld, clock: Clock, when: Stage
) -> None:
    job = world.create()
    stranger, others = world.hospitals[3], world.hospitals[:3]
    stranger.leaves = Stage.SHARES
    world.round(job)
    clock.passes(STAGE_SECONDS + 1)
    world.advance(job)
    while world.room(job).stage is not when:
        for each in others:
            world.act(job, each)
        world.advance(job)
    masked = Masked(roster=roster_of(world.room(job)).digest(), clipped=0)
    metrics = METRICS.model_copy(update={"masked": masked})
    world.ledger.submit(job, 1, stranger.address, world.artifacts.add(near(9)), 10, metrics)
    world.advance(job)
    world.round(job)
    assert reasons(world, job)[stranger.address] == "MALFORMED_FILE"
    is_mean_of(world, job, others)


def test_an_update_that_comes_when_the_sum_is_settled_is_rejected(world: SecureWorld, clock: Clock) -> None:
    job = world.create()
    late = world.hospitals[2]
    late.leaves = Stage.INPUTS
    world.round(job)
    view = world.receiving.view(job, 1, late.address)
    clock.passes(DEADLINE_SECONDS + 5)
    world.advance(job)
    assert world.room(job).stage is Stage.CONSENT
    world.ledger.clock = lambda: 0.0  # a block's time is its proposer's
    world.submit(job, late, view)
    world.advance(job)
    world.round(job)
    assert reasons(world, job)[late.address] == "MALFORMED_FILE"
    is_mean_of(world, job, [each for each in world.hospitals if each is not late])


def test_nobody_is_asked_to_agree_before_the_ledger_shows_what_was_rejected(
    world: SecureWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.create()
    while world.room(job).stage is not Stage.INPUTS:
        for each in world.hospitals:
            world.act(job, each)
        world.advance(job)
    for each in world.hospitals[1:]:
        world.act(job, each)
    liar = world.hospitals[0].address
    masked = Masked(roster=roster_of(world.room(job)).digest(), clipped=0)
    metrics = METRICS.model_copy(update={"masked": masked})
    world.ledger.submit(job, 1, liar, world.artifacts.add(near(9)), 10, metrics)
    behind = world.ledger.rounds[job, 1]
    with monkeypatch.context() as patch:
        patch.setattr(world.ledger, "round", lambda *_: behind)
        world.advance(job)
        assert reasons(world, job)[liar] == "MALFORMED_FILE"
        assert world.room(job).stage is Stage.INPUTS
    world.advance(job)
    assert world.room(job).stage is Stage.CONSENT
    world.round(job)
    is_mean_of(world, job, world.hospitals[1:])


def test_a_file_that_is_lost_after_its_masks_are_off_ends_the_round(world: SecureWorld, clock: Clock) -> None:
    job = world.create()
    for _ in range(3):
        for each in world.hospitals:
            world.act(job, each)
        if world.room(job).stage is not Stage.INPUTS:
            world.advance(job)
    world.advance(job)
    assert world.room(job).stage is Stage.CONSENT
    digest = world.ledger.rounds[job, 1].updates[0].update.digest
    (world.artifacts.directory / digest).unlink()
    clock.passes(STAGE_SECONDS)
    world.start()
    world.round(job)
    assert world.ledger.rounds[job, 1].status is RoundStatus.ABORTED
    assert world.room(job).unmasking is None
    assert left_behind(world) == 0


@pytest.mark.parametrize("stage", [Stage.KEYS, Stage.SHARES, Stage.INPUTS, Stage.CONSENT, Stage.REVEAL])
def test_a_job_that_is_stopped_leaves_nothing_in_its_room(world: SecureWorld, stage: Stage) -> None:
    job = world.create()
    while world.room(job).stage is not stage:
        for each in world.hospitals:
            world.act(job, each)
        world.advance(job)
    for each in world.hospitals[:2]:
        world.act(job, each)
    assert left_behind(world) > 0
    world.coordinator.stop(job)
    world.advance(job)
    assert world.state(job).phase is Phase.STOPPED
    assert (world.room(job).stage, world.room(job).unmasking, left_behind(world)) == (Stage.ABORTED, None, 0)


def test_only_who_is_asked_is_told_to_train_or_to_unmask(world: SecureWorld) -> None:
    job = world.create()
    assignments = Assignments(world.store, Orders(COORDINATOR, lambda: DOMAIN))
    late = Hospital(Account.create(), 10, 9)
    world.join(late)

    def asked(hospital: Hospital) -> list[str]:
        return [each.name for each in assignments.of(hospital.address).tasks]

    assert asked(late) == []
    assert asked(world.hospitals[0]) == [TRAIN_TASK]
    while world.room(job).stage is not Stage.REVEAL:
        for each in world.hospitals:
            world.act(job, each)
        world.advance(job)
    assert asked(late) == []
    assert asked(world.hospitals[0]) == [UNMASK_TASK]
    given = assignments.of(world.hospitals[0].address).tasks[0]
    sent = [task for who, name, task in world.sent if name == UNMASK_TASK and who == world.hospitals[0].address]
    assert given.task.model_dump(mode="json") == sent[-1]
    world.act(job, world.hospitals[0])
    assert asked(world.hospitals[0]) == []

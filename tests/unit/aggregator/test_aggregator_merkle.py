"""Merkle rounds moved by a real coordinator against working doubles: collected, committed, screened, folded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import rounds, views
from concilia_kit import digests
from concilia_kit.problems import Unavailable
from concilia_kit.wire.chain import RoundStatus, Transaction
from concilia_kit.wire.jobs import Phase, Recording

from .conftest import FolderArtifacts, MemoryLedger, address
from .test_aggregator_service import HOSPITALS, World, near

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    return World(tmp_path, ledger, artifacts)


def training(world: World, **changes: Any) -> str:
    """A Merkle job whose first round is open."""
    job = world.create(recording=Recording.MERKLE, **changes)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    assert world.phase(job) is Phase.TRAINING
    return job


def pass_time(world: World, monkeypatch: pytest.MonkeyPatch, job: str, number: int, seconds: float) -> None:
    """Have it be that long after a round's deadline; nodes are heard of all the same."""
    now = world.ledger.rounds[job, number].deadline + seconds
    monkeypatch.setattr("concilia_aggregator.service.time.time", lambda: now)
    monkeypatch.setattr(world.coordinator, "_node_seconds", 1e9)
    world.ledger.clock = lambda: now


def told(world: World, job: str) -> str:
    return views.job(world.store, world.store.job(job)).detail


def test_updates_are_collected_committed_in_order_and_folded(world: World) -> None:
    job = training(world, rounds=1)
    assert world.ledger.rounds[job, 1].merkle
    world.submit(job, 1, {who: near(1) for who in HOSPITALS[:2]})
    collecting = world.ledger.rounds[job, 1]
    assert (collecting.root, collecting.updates, collecting.submitted) == (None, (), 0)
    assert told(world, job) == "1 of 3 hospitals still train"
    world.submit(job, 1, {HOSPITALS[2]: near(2)})
    closed = world.ledger.rounds[job, 1]
    assert closed.status is RoundStatus.CLOSED
    assert closed.root is not None
    assert [(item.index, item.update.hospital) for item in closed.updates] == list(enumerate(sorted(HOSPITALS)))
    assert closed.contributions == digests.of_contributions(
        digests.Contribution(item.update.hospital, item.update.digest, item.update.samples) for item in closed.updates
    )
    assert world.phase(job) is Phase.EVALUATING
    world.evaluate(job, 1)
    assert world.phase(job) is Phase.FINISHED
    assert views.job(world.store, world.store.job(job)).rounds[1].accepted == 3


def test_both_ways_of_recording_give_the_same_model(world: World) -> None:
    heads = []
    for recording in Recording:
        job = world.create(recording=recording, rounds=1)
        world.coordinator.advance(job)
        world.evaluate(job, 0)
        world.submit(job, 1, {who: near(number) for number, who in enumerate(HOSPITALS)})
        heads.append(world.ledger.rounds[job, 1].global_digest)
    assert heads[0] == heads[1]
    assert heads[0] is not None


def test_at_the_deadline_the_quorum_is_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS[:2]})
    pass_time(world, monkeypatch, job, 1, rounds.GRACE_SECONDS)
    world.coordinator.advance(job)
    assert world.ledger.rounds[job, 1].root is None, "an update of the last second may still be on its way"
    pass_time(world, monkeypatch, job, 1, rounds.GRACE_SECONDS + 1)
    world.coordinator.advance(job)
    assert len(world.ledger.rounds[job, 1].accepted()) == 2
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED


def test_too_few_are_never_committed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)
    world.submit(job, 1, {HOSPITALS[0]: near(1)})
    pass_time(world, monkeypatch, job, 1, rounds.GRACE_SECONDS + 1)
    world.coordinator.advance(job)
    assert (world.ledger.rounds[job, 1].status, world.ledger.rounds[job, 1].root) == (RoundStatus.ABORTED, None)
    assert world.ledger.rounds[job, 2].base == world.initial


def test_who_lost_its_role_meanwhile_does_not_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS[:2]})
    world.ledger.members.remove(HOSPITALS[1])
    world.submit(job, 1, {HOSPITALS[2]: near(2)})
    closed = world.ledger.rounds[job, 1]
    assert [item.update.hospital for item in closed.accepted()] == sorted({HOSPITALS[0], HOSPITALS[2]})
    world.evaluate(job, 1)
    world.ledger.submit(job, 2, HOSPITALS[0], world.artifacts.add(near(3)))
    world.ledger.submit(job, 2, HOSPITALS[2], world.artifacts.add(near(4)))
    world.ledger.members.remove(HOSPITALS[2])
    pass_time(world, monkeypatch, job, 2, rounds.GRACE_SECONDS + 1)
    world.coordinator.advance(job)
    assert (world.ledger.rounds[job, 2].status, world.ledger.rounds[job, 2].root) == (RoundStatus.ABORTED, None)


def test_a_liar_is_left_out_and_the_round_goes_on(world: World) -> None:
    job = training(world)
    liar = near(1) | {"layer.bias": np.full(7, np.inf, np.float32)}
    world.submit(job, 1, {HOSPITALS[0]: near(1), HOSPITALS[1]: liar, HOSPITALS[2]: near(2)})
    closed = world.ledger.rounds[job, 1]
    assert closed.status is RoundStatus.CLOSED
    assert [item.update.hospital for item in closed.updates if item.reason] == [HOSPITALS[1]]


def test_too_many_liars_end_a_committed_round_at_once(world: World) -> None:
    """Of a round that is recorded one by one others could still come; here nobody can."""
    job = training(world)
    world.ledger.members.add(late := address(9))
    world.store.register(late, views.nodes(world.store)[0].registration)
    liar = near(1) | {"layer.bias": np.full(7, np.inf, np.float32)}
    world.submit(job, 1, {HOSPITALS[0]: near(1), HOSPITALS[1]: liar, HOSPITALS[2]: liar})
    assert world.ledger.rounds[job, 1].status is RoundStatus.ABORTED
    assert world.ledger.rounds[job, 1].root is not None
    assert world.ledger.rounds[job, 2].base == world.initial


def test_a_chain_that_is_away_for_too_long_costs_the_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)
    plain = world.ledger.commit

    def down(*_: Any) -> None:
        raise Unavailable("not now")

    monkeypatch.setattr(world.ledger, "commit", down)
    for _ in range(2):
        with pytest.raises(Unavailable):
            world.submit(
                job, 1, {who: near(1) for who in HOSPITALS if who not in world.ledger.rounds[job, 1].collected}
            )
    assert world.phase(job) is Phase.TRAINING
    pass_time(world, monkeypatch, job, 1, rounds.COMMIT_GRACE)
    monkeypatch.setattr(world.ledger, "commit", plain)
    world.coordinator.advance(job)
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED, "an hour later is in time"
    world.evaluate(job, 1)
    monkeypatch.setattr(world.ledger, "commit", down)
    with pytest.raises(Unavailable):
        world.submit(job, 2, {who: near(2) for who in HOSPITALS})
    pass_time(world, monkeypatch, job, 2, rounds.COMMIT_GRACE + 1)
    world.coordinator.advance(job)
    assert world.ledger.rounds[job, 2].status is RoundStatus.ABORTED


def test_a_ledger_that_is_slow_to_show_its_commitment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)
    plain, read = world.ledger.commit, world.ledger.round
    calls = []

    def commit(*where: Any) -> None:
        old = read(*where)
        calls.append(where)
        plain(*where)
        monkeypatch.setattr(world.ledger, "round", lambda *_: old)

    monkeypatch.setattr(world.ledger, "commit", commit)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    assert (world.phase(job), len(calls)) == (Phase.TRAINING, 1)
    monkeypatch.setattr(world.ledger, "round", read)
    world.coordinator.advance(job)
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED
    assert len(calls) == 1


def test_a_round_that_was_committed_early_is_folded_as_it_is(world: World) -> None:
    job = training(world)
    world.ledger.submit(job, 1, HOSPITALS[0], world.artifacts.add(near(1)))
    world.ledger.submit(job, 1, HOSPITALS[1], world.artifacts.add(near(2)))
    world.ledger.commit(job, 1)
    world.coordinator.advance(job)
    assert len(world.ledger.rounds[job, 1].accepted()) == 2
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED


def test_stopping_gives_up_what_was_collected(world: World) -> None:
    job = training(world)
    world.submit(job, 1, {HOSPITALS[0]: near(1)})
    world.coordinator.stop(job)
    world.coordinator.advance(job)
    assert world.phase(job) is Phase.STOPPED
    assert (world.ledger.rounds[job, 1].status, world.ledger.rounds[job, 1].root) == (RoundStatus.ABORTED, None)


def carried(transaction: str, seconds: float, round_: int, function: str, hospital: str | None) -> Transaction:
    return Transaction(
        transaction=transaction,
        block=1,
        gas=1,
        received_at=NOW,
        sent_at=NOW,
        confirmed_at=NOW + timedelta(seconds=seconds),
        orders=2,
        function=function,
        round=round_,
        hospital=hospital,
    )


def test_a_transaction_counts_once_however_many_it_carried(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        carried("0x1", 0.5, 1, "openRound", None),
        carried("0x2", 2.0, 1, "submitUpdates", HOSPITALS[0]),
        carried("0x2", 3.0, 1, "submitUpdates", HOSPITALS[1]),
        carried("0x2", 1.0, 1, "submitUpdates", HOSPITALS[2]),
        carried("0x3", 0.25, 1, "rejectUpdate", HOSPITALS[2]),
        carried("0x4", 9.0, 2, "openRound", None),
    ]
    monkeypatch.setattr(world.ledger, "transactions", lambda _job: rows)
    job = training(world)
    world.submit(job, 1, {who: near(1) for who in HOSPITALS})
    seconds = views.job(world.store, world.store.job(job)).rounds[1].seconds_chain
    assert seconds == pytest.approx(0.5 + 3.0 + 0.25)

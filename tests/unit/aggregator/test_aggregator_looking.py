"""How jobs are looked at: what is certain without asking about every hospital, early screening, what wakes a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from concilia_aggregator import rounds
from concilia_aggregator.rounds import JobState, Wait
from concilia_aggregator.wakeup import QUEUE, Listener, Wakeup
from concilia_kit import queue
from concilia_kit.problems import Unavailable
from concilia_kit.wire.chain import (
    COLLECTED_STREAM,
    STREAM,
    Collected,
    EventName,
    LedgerEvent,
    Reason,
    RoundStanding,
    RoundStatus,
)
from concilia_kit.wire.jobs import JobSpec, Phase, Recording
from hypothesis import given
from hypothesis import strategies as st

from .conftest import FolderArtifacts, MemoryLedger, address, model
from .test_aggregator_service import HOSPITALS, REGISTRATION, World, near, report

_members = st.frozensets(st.sampled_from([address(number) for number in range(1, 7)]), max_size=6)


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    return World(tmp_path, ledger, artifacts)


@given(
    cohort=_members,
    recorded=_members,
    status=st.sampled_from(RoundStatus),
    merkle=st.booleans(),
    committed=st.booleans(),
    now=st.integers(90, 110),
    over_selection=st.none() | st.floats(1, 3),
    quorum=st.integers(1, 4),
)
def test_what_is_said_early_is_what_a_full_look_says(
    cohort: frozenset[str],
    recorded: frozenset[str],
    status: RoundStatus,
    merkle: bool,
    committed: bool,
    now: int,
    over_selection: float | None,
    quorum: int,
) -> None:
    spec = JobSpec(name="j", initial="0" * 64, quorum=quorum, over_selection=over_selection)
    committed = committed and merkle
    state = JobState(Phase.TRAINING, "0" * 64, round=1, deadline=100, cohort=cohort)
    shown = RoundStanding(
        job="a" * 64,
        round=1,
        status=status,
        base="0" * 64,
        deadline=100,
        quorum=1,
        updates=len(recorded),
        rejected=0,
        merkle=merkle,
        committed=committed,
    )
    said = rounds.early(spec, state, shown, now)
    if said is None:
        return
    known = rounds.RoundFacts(status, "0" * 64, 100, recorded, len(recorded), merkle=merkle, committed=committed)
    full = rounds.decide(spec, state, rounds.Facts(now, cohort, known))
    assert isinstance(full, Wait)
    if recorded <= cohort:
        assert full == said


def training(world: World, **changes: Any) -> str:
    job = world.create(**changes)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    assert world.phase(job) is Phase.TRAINING
    return job


def test_a_liar_is_rejected_while_the_others_still_train(world: World) -> None:
    job = training(world)
    world.submit(job, 1, {HOSPITALS[0]: model(1, scale=1e6)})
    assert world.phase(job) is Phase.TRAINING
    assert [item.reason for item in world.ledger.rounds[job, 1].updates] == [Reason.NORM_TOO_LARGE]
    world.submit(job, 1, {who: near(1) for who in HOSPITALS[1:]})
    closed = world.ledger.rounds[job, 1]
    assert (closed.status, len(closed.accepted())) == (RoundStatus.CLOSED, 2)


def test_some_updates_a_look_are_screened_early(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [address(number) for number in range(10, 20)]
    world.ledger.members.update(others)
    for each in others:
        world.store.register(each, REGISTRATION)
    job = world.create()
    world.coordinator.advance(job)
    for each in others:
        world.coordinator.report(each, report(job, 0, world.initial))
    world.evaluate(job, 0)
    seen: list[int] = []
    plain = world.folder.screen

    def screen(recorded: Any, *rest: Any) -> Any:
        seen.append(len(recorded.updates))
        return plain(recorded, *rest)

    monkeypatch.setattr(world.folder, "screen", screen)
    for each in others[:9]:
        world.ledger.submit(job, 1, each, world.artifacts.add(near(1)))
    assert [world.coordinator.advance(job) for _ in range(4)] == [True, True, False, False]
    assert seen == [4, 8, 9]


def test_screening_that_fails_early_holds_nothing_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world)

    def away(*_: Any) -> Any:
        raise Unavailable("the store does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(world.folder, "screen", away)
        world.submit(job, 1, {HOSPITALS[0]: near(1)})
        assert world.phase(job) is Phase.TRAINING
    world.submit(job, 1, {who: near(2) for who in HOSPITALS[1:]})
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED


def test_a_collecting_round_is_waited_for_without_its_updates(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training(world, recording=Recording.MERKLE)
    with monkeypatch.context() as patched:
        patched.setattr(MemoryLedger, "round", lambda *_: pytest.fail("every update was asked for"))
        patched.setattr(MemoryLedger, "hospitals", lambda *_: pytest.fail("every hospital was asked for"))
        patched.setattr(MemoryLedger, "standing", _standing)
        world.ledger.submit(job, 1, HOSPITALS[0], world.artifacts.add(near(1)))
        assert world.coordinator.advance(job) is False
    world.submit(job, 1, {who: near(1) for who in HOSPITALS[1:]})
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED


def _standing(self: MemoryLedger, job: str, round_: int) -> RoundStanding:
    known = self.rounds[job, round_]
    return RoundStanding(
        job=job,
        round=round_,
        status=known.status,
        base=known.base,
        deadline=known.deadline,
        quorum=known.quorum,
        updates=len(known.collected),
        rejected=0,
        merkle=True,
        committed=False,
    )


class Known:
    """A store that knows which jobs are active, and no more."""

    def __init__(self, *jobs: str) -> None:
        self._jobs = list(jobs)

    def active(self) -> list[str]:
        return self._jobs


def test_what_the_ledger_and_the_collector_say_wakes_the_job_it_is_about(redis_url: str) -> None:
    ours, theirs = "a" * 64, "b" * 64
    broker, client = queue.application("test", redis_url), redis.Redis.from_url(redis_url)
    told: list[tuple[str, Callable[[str], dict[str, str]]]] = [
        (STREAM, _opened),
        (COLLECTED_STREAM, lambda job: {"round": Collected(job=job, round=1, updates=3).model_dump_json()}),
    ]
    listener = Listener(Wakeup(broker, client), client, Known(ours), tick_seconds=3600)  # type: ignore[arg-type]
    listener.start()
    _until(lambda: client.llen(QUEUE) == 2, "its first tick: a probe and a look")
    for stream, entry in told:
        client.delete(f"concilia:advance:{ours}", QUEUE)
        client.xadd(stream, {"event": "no event"})
        client.xadd(stream, entry(theirs))  # type: ignore[arg-type]
        client.xadd(stream, entry(ours))  # type: ignore[arg-type]
        _until(lambda: client.llen(QUEUE) == 1, f"a look by what {stream} told")
        assert not client.exists(f"concilia:advance:{theirs}")
    listener.stop()
    client.xadd(STREAM, _opened(theirs))  # type: ignore[arg-type]
    listener.join(10)
    assert not listener.is_alive()


def _opened(job: str) -> dict[str, str]:
    event = LedgerEvent(
        name=EventName.ROUND_OPENED, job=job, round=1, block=1, log_index=0, transaction="0x1", arguments={}
    )
    return {"event": event.model_dump_json()}


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)

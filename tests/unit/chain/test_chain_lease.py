"""One holder at a time, whatever the order of taking, renewing, dying and waking again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from concilia_chain import main
from concilia_chain.lease import Lease, LeaseHeld
from concilia_kit import database
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

SECONDS = 9.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = database.engine(f"sqlite:///{tmp_path / 'chain.db'}")
    database.migrate(made, main.MIGRATIONS)
    yield made
    made.dispose()


def require(engine: sa.Engine, lease: Lease) -> None:
    with engine.begin() as connection:
        lease.require(connection)


def test_the_second_is_told_who_is_the_first(engine: sa.Engine) -> None:
    clock = Clock()
    first, second = (Lease(engine, "relay", SECONDS, clock) for _ in range(2))
    first.hold()
    require(engine, first)
    with pytest.raises(LeaseHeld, match=r"process \d+.* for another 9 s"):
        second.hold()
    with pytest.raises(LeaseHeld):
        require(engine, second)
    Lease(engine, "another relay", SECONDS, clock).hold()


def test_who_does_not_renew_loses_it(engine: sa.Engine) -> None:
    clock = Clock()
    first, second = (Lease(engine, "relay", SECONDS, clock) for _ in range(2))
    first.hold()
    clock.now += SECONDS + 1
    second.hold()
    with pytest.raises(LeaseHeld):
        require(engine, first)
    with pytest.raises(LeaseHeld):
        first.hold()


def test_who_lets_go_makes_room_at_once(engine: sa.Engine) -> None:
    first, second = (Lease(engine, "relay", SECONDS, Clock()) for _ in range(2))
    first.hold()
    second.release()  # not its to release
    with pytest.raises(LeaseHeld):
        second.hold()
    first.release()
    second.hold()


@pytest.fixture
def machine(engine: sa.Engine) -> type[RuleBasedStateMachine]:
    class Holders(RuleBasedStateMachine):
        """Three processes, and a model of who may write."""

        def __init__(self) -> None:
            super().__init__()
            with engine.begin() as connection:
                connection.execute(sa.text("DELETE FROM leases"))
            self.clock = Clock()
            self.leases = [Lease(engine, "relay", SECONDS, self.clock) for _ in range(3)]
            self.holder: int | None = None
            self.ends_at = 0.0

        @rule(who=st.integers(0, 2))
        def hold(self, who: int) -> None:
            free = self.holder in (None, who) or self.ends_at <= self.clock.now
            try:
                self.leases[who].hold()
            except LeaseHeld:
                assert not free
            else:
                assert free
                # Renewed only where a third of its time is over.
                if self.holder != who or self.clock.now >= self.ends_at - SECONDS * 2 / 3:
                    self.holder, self.ends_at = who, self.clock.now + SECONDS

        @rule(who=st.integers(0, 2))
        def release(self, who: int) -> None:
            self.leases[who].release()
            if self.holder == who:
                self.holder = None

        @rule(seconds=st.floats(0.5, 12))
        def time_goes_by(self, seconds: float) -> None:
            self.clock.now += seconds

        @invariant()
        def only_the_holder_may_write(self) -> None:
            for who, lease in enumerate(self.leases):
                try:
                    require(engine, lease)
                except LeaseHeld:
                    assert who != self.holder
                else:
                    assert who == self.holder

    return Holders


def test_any_order_of_events(machine: type[RuleBasedStateMachine]) -> None:
    run = machine.TestCase
    run.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
    run().runTest()

"""What becomes of a stored artifact: which kind it is by what the ledger says, and when it may go; pure.

Only two kinds ever go. An update, of which nobody's record but rounds that are over speaks: it is kept for the audits
that may need it, counted from the last that the ledger says of its job, and that may be for ever. And an orphan: bytes
that hospitals alone brought and no record names. Whatever else is somebody's base, result or published model, the trunk
of an adapter that stays, or was brought by an administrator or coordinator or made here, stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from concilia_kit.wire.models import StoredKind

DAY = 86400.0
STILL_TAKEN_SECONDS = DAY
"""For so long after its deadline a round counts as one that may still record or commit updates. The contract takes
none after the deadline, and a commitment for an hour more (`COMMIT_GRACE` in contracts/src)."""
CLOCKS_SECONDS = 3600.0
"""How far the clocks of this machine, of another with the same store and of the chain may be apart."""


class Use(StrEnum):
    """As what a round's record on the ledger names an artifact."""

    BASE = "base"
    UPDATE = "update"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an artifact whose file is there. Times are Unix seconds.

    `first_bases` and `bases` count rounds that begin with it (the first of a job, any), `globals_` rounds that end with
    it, `updates` rounds in which it is somebody's update, `adapters` the adapters over it that others than hospitals
    brought; `job_last_at` is when the ledger last said something of any job it is an update of, and `job_open` whether
    one of them has a round that is not over.
    """

    digest: str
    size: int
    brought_at: float
    shared: bool
    registered: bool
    first_bases: int = 0
    bases: int = 0
    globals_: int = 0
    updates: int = 0
    adapters: int = 0
    job_last_at: float | None = None
    job_open: bool = False

    @property
    def kind(self) -> StoredKind:
        """What it is."""
        if self.globals_ or self.registered or self.bases > self.first_bases:
            return StoredKind.GLOBAL
        if self.bases:
            return StoredKind.INITIAL
        if self.adapters:
            return StoredKind.TRUNK
        if self.updates:
            return StoredKind.UPDATE
        return StoredKind.SPARE if self.shared else StoredKind.ORPHAN


@dataclass(frozen=True, slots=True)
class Reading:
    """How far the ledger is known. Without one nothing goes.

    `since` is when the oldest round that was read began: what is older may be of another ledger. `taking_since` is when
    the oldest round began of which an update may be here that no record names yet; None where there is no such round.
    """

    since: float
    taking_since: float | None


@dataclass(frozen=True, slots=True)
class Policy:
    """How long updates and orphans are kept, seconds; None: for ever."""

    updates: float | None
    orphans: float | None


def goes(facts: Facts, policy: Policy, reading: Reading | None, now: float) -> bool:
    """Whether the policy deletes an artifact now."""
    if reading is None or facts.shared:
        return False
    if facts.kind is StoredKind.UPDATE:
        return (
            policy.updates is not None
            and not facts.job_open
            and facts.job_last_at is not None
            and max(facts.job_last_at, facts.brought_at) + policy.updates <= now
        )
    if facts.kind is StoredKind.ORPHAN:
        taking = reading.taking_since
        return (
            policy.orphans is not None
            and facts.brought_at + policy.orphans <= now
            and facts.brought_at > reading.since
            and (taking is None or facts.brought_at < taking - CLOCKS_SECONDS)
        )
    return False


def may_take(*, opened_at: float, deadline: float, over: bool, named: bool, now: float) -> float | None:
    """When a round began, if an update of it may be here that no record names yet; else None.

    A round whose committed updates nobody tells (`named` is False) is one for ever.
    """
    still_taken = not over and now < deadline + STILL_TAKEN_SECONDS
    return opened_at if still_taken or not named else None

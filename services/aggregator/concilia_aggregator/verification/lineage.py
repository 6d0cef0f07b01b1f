"""A job's lineage rebuilt from its events alone: pure, and suspicious of every order the contract would not allow.

Rules: rounds are opened one after another from 1; each opens on the head (the last closed round's global model);
updates and rejections concern an open round; a hospital counts once a round; a round closes with as many contributions
as it has updates that were not rejected, and at least its quorum; what is published is the head. A round takes its
updates one by one or under one commitment, never both; a committed update is rejected by its leaf, which is named in
the same transaction and counts once. What is under a commitment no event says: see `commitment`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from concilia_kit.wire.chain import EventName, LedgerEvent

# Anybody's, at any time; they change nothing.
_REMARKS = frozenset({EventName.UPDATE_PROVEN, EventName.UPDATE_DISPUTED})


class BrokenLineage(Exception):
    """Events that no run of the contract emits; the message names the round, as `round` and `hospital` do."""

    round: int = 0
    hospital: str | None = None


@dataclass
class RecordedUpdate:
    """An update as its event has it, or its leaf; `reason` is the contract's number where it was rejected."""

    hospital: str
    digest: str
    samples: int
    metrics: str
    transaction: str
    block: int
    log_index: int
    reason: int = 0


@dataclass
class Commitment:
    """A Merkle round's updates as their event has them; `rejected` is hospital and reason by the leaf's index."""

    root: str
    count: int
    transaction: str
    block: int
    log_index: int
    rejected: dict[int, tuple[str, int]] = field(default_factory=dict)


@dataclass
class Round:
    """A round as its events have it. `updates` of a round with a `commitment` come from its leaves, later."""

    number: int
    base: str
    quorum: int
    transaction: str
    updates: dict[str, RecordedUpdate] = field(default_factory=dict)
    merkle: bool = False
    commitment: Commitment | None = None
    global_digest: str | None = None
    contributions: str | None = None
    aborted: bool = False

    @property
    def is_open(self) -> bool:
        """Neither closed nor aborted."""
        return self.global_digest is None and not self.aborted

    @property
    def submitted(self) -> int:
        """How many updates the ledger counts."""
        return len(self.updates) if self.commitment is None else self.commitment.count

    @property
    def rejected(self) -> int:
        """How many of them were rejected."""
        if self.commitment is not None:
            return len(self.commitment.rejected)
        return sum(bool(item.reason) for item in self.updates.values())

    def accepted(self) -> list[RecordedUpdate]:
        """Updates that were not rejected."""
        return [item for item in self.updates.values() if not item.reason]


@dataclass
class Lineage:
    """A job from its initial weights to its published model."""

    rounds: list[Round] = field(default_factory=list)
    published: str | None = None

    @property
    def head(self) -> str | None:
        """What the next round must start from."""
        closed = [item.global_digest for item in self.rounds if item.global_digest]
        return closed[-1] if closed else (self.rounds[0].base if self.rounds else None)


def rebuild(events: Iterable[LedgerEvent]) -> Lineage:
    """The lineage that events in chain order describe. Raises `BrokenLineage`."""
    lineage = Lineage()
    leafless: LedgerEvent | None = None  # rejects a committed update whose leaf the next event has to name
    for event in events:
        try:
            leafless = _apply(lineage, event, leafless)
        except BrokenLineage as broken:
            raise _placed(broken, event) from None
        except (KeyError, ValueError) as error:
            lacking = BrokenLineage(f"round {event.round}: {event.name.value} lacks a member: {error}")
            raise _placed(lacking, event) from error
    if leafless is not None:
        raise _placed(BrokenLineage(f"{_named(leafless)} names no leaf"), leafless)
    return lineage


def _placed(broken: BrokenLineage, event: LedgerEvent) -> BrokenLineage:
    hospital = event.arguments.get("hospital")
    broken.round, broken.hospital = event.round, None if hospital is None else str(hospital)
    return broken


def _named(event: LedgerEvent) -> str:
    return f"round {event.round}: {event.name.value} in transaction {event.transaction}"


def _apply(lineage: Lineage, event: LedgerEvent, leafless: LedgerEvent | None) -> LedgerEvent | None:
    """Take one event in; it is returned where it rejects a committed update, whose leaf comes next."""
    broken = _named(event)
    if event.name in _REMARKS:
        return leafless
    if lineage.published:
        raise BrokenLineage(f"{broken} after the model was published")
    if (event.name is EventName.LEAF_REJECTED) != (leafless is not None):
        raise BrokenLineage(f"{broken}: an update's rejection and its leaf's do not go together")
    arguments = event.arguments
    if event.name is EventName.ROUND_OPENED:
        _open(lineage, event, broken)
        return None
    current = lineage.rounds[-1] if lineage.rounds else None
    if event.name is EventName.MODEL_PUBLISHED:
        if current is None or current.is_open or arguments["digest"] != lineage.head:
            raise BrokenLineage(f"{broken} publishes what is not the last closed round's model")
        lineage.published = str(arguments["digest"])
        return None
    if current is None or current.number != event.round or not current.is_open:
        raise BrokenLineage(f"{broken} concerns a round that is not open")
    if event.name is EventName.UPDATE_RECORDED:
        _record(current, event, broken)
    elif event.name in (EventName.MERKLE_ROUND_OPENED, EventName.UPDATES_COMMITTED):
        _commit(current, event, broken)
    elif event.name is EventName.UPDATE_REJECTED and current.commitment is not None:
        if not int(arguments["reason"]):
            raise BrokenLineage(f"{broken} rejects without a reason")
        return event
    elif leafless is not None:
        _reject_leaf(current, leafless, event, broken)
    elif event.name is EventName.UPDATE_REJECTED:
        update = current.updates.get(str(arguments["hospital"]))
        if update is None or update.reason or not int(arguments["reason"]):
            raise BrokenLineage(f"{broken} rejects what was not there to reject")
        update.reason = int(arguments["reason"])
    elif event.name is EventName.ROUND_CLOSED:
        accepted = current.submitted - current.rejected
        if int(arguments["count"]) != accepted or accepted < current.quorum:
            raise BrokenLineage(f"{broken}: {accepted} accepted updates, {arguments['count']} claimed")
        current.global_digest = str(arguments["globalDigest"])
        current.contributions = str(arguments["contributions"])
    else:
        current.aborted = True
    return None


def _record(current: Round, event: LedgerEvent, broken: str) -> None:
    arguments = event.arguments
    hospital = str(arguments["hospital"])
    if current.merkle or current.commitment is not None:
        raise BrokenLineage(f"{broken} records an update in a round that takes a commitment")
    if hospital in current.updates:
        raise BrokenLineage(f"{broken}: hospital {hospital} counts twice")
    current.updates[hospital] = RecordedUpdate(
        hospital,
        str(arguments["digest"]),
        int(arguments["samples"]),
        str(arguments["metrics"]),
        event.transaction,
        event.block,
        event.log_index,
    )


def _commit(current: Round, event: LedgerEvent, broken: str) -> None:
    if current.updates or current.commitment is not None:
        raise BrokenLineage(f"{broken} concerns a round that has updates already")
    if event.name is EventName.MERKLE_ROUND_OPENED:
        if current.merkle or event.transaction != current.transaction:
            raise BrokenLineage(f"{broken} does not follow the opening of its round")
        current.merkle = True
        return
    root, count = str(event.arguments["root"]), int(event.arguments["count"])
    if count < 1:
        raise BrokenLineage(f"{broken} commits nothing")
    current.commitment = Commitment(root, count, event.transaction, event.block, event.log_index)


def _reject_leaf(current: Round, rejection: LedgerEvent, event: LedgerEvent, broken: str) -> None:
    assert current.commitment is not None, "else its rejection was of a recorded update"
    index, rejected = int(event.arguments["index"]), current.commitment.rejected
    if event.transaction != rejection.transaction or index in rejected or not 0 <= index < current.commitment.count:
        raise BrokenLineage(f"{broken} rejects a leaf that was not there to reject")
    rejected[index] = str(rejection.arguments["hospital"]), int(rejection.arguments["reason"])


def _open(lineage: Lineage, event: LedgerEvent, broken: str) -> None:
    if event.round != len(lineage.rounds) + 1 or (lineage.rounds and lineage.rounds[-1].is_open):
        raise BrokenLineage(f"{broken} is out of order")
    base = str(event.arguments["base"])
    if lineage.rounds and base != lineage.head:
        raise BrokenLineage(f"{broken} does not start from the head")
    lineage.rounds.append(Round(event.round, base, int(event.arguments["quorum"]), event.transaction))

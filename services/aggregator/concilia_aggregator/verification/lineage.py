"""A job's lineage rebuilt from its events alone: pure, and suspicious of every order the contract would not allow.

Rules: rounds are opened one after another from 1; each opens on the head (the last closed round's global model);
updates and rejections concern an open round; a hospital counts once a round; a round closes with as many contributions
as it has updates that were not rejected, and at least its quorum; what is published is the head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from concilia_kit.wire.chain import EventName, LedgerEvent

# Anybody's, at any time; they change nothing.
_REMARKS = frozenset({EventName.UPDATE_PROVEN, EventName.UPDATE_DISPUTED})
_COMMITTING = frozenset({EventName.MERKLE_ROUND_OPENED, EventName.UPDATES_COMMITTED, EventName.LEAF_REJECTED})


class BrokenLineage(Exception):
    """Events that no run of the contract emits; the message names the round, as `round` and `hospital` do."""

    round: int = 0
    hospital: str | None = None


@dataclass
class RecordedUpdate:
    """An update as its event has it; `reason` is the contract's number where it was rejected."""

    hospital: str
    digest: str
    samples: int
    metrics: str
    transaction: str
    block: int
    log_index: int
    reason: int = 0


@dataclass
class Round:
    """A round as its events have it."""

    number: int
    base: str
    quorum: int
    updates: dict[str, RecordedUpdate] = field(default_factory=dict)
    global_digest: str | None = None
    contributions: str | None = None
    aborted: bool = False

    @property
    def is_open(self) -> bool:
        """Neither closed nor aborted."""
        return self.global_digest is None and not self.aborted

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
    for event in events:
        try:
            _apply(lineage, event)
        except BrokenLineage as broken:
            raise _placed(broken, event) from None
        except (KeyError, ValueError) as error:
            lacking = BrokenLineage(f"round {event.round}: {event.name.value} lacks a member: {error}")
            raise _placed(lacking, event) from error
    return lineage


def _placed(broken: BrokenLineage, event: LedgerEvent) -> BrokenLineage:
    hospital = event.arguments.get("hospital")
    broken.round, broken.hospital = event.round, None if hospital is None else str(hospital)
    return broken


def _apply(lineage: Lineage, event: LedgerEvent) -> None:
    broken = f"round {event.round}: {event.name.value} in transaction {event.transaction}"
    if event.name in _REMARKS:
        return
    if event.name in _COMMITTING:
        raise BrokenLineage(f"{broken}: updates under one commitment are not verified yet")
    if lineage.published:
        raise BrokenLineage(f"{broken} after the model was published")
    arguments = event.arguments
    if event.name is EventName.ROUND_OPENED:
        _open(lineage, event, broken)
        return
    current = lineage.rounds[-1] if lineage.rounds else None
    if event.name is EventName.MODEL_PUBLISHED:
        if current is None or current.is_open or arguments["digest"] != lineage.head:
            raise BrokenLineage(f"{broken} publishes what is not the last closed round's model")
        lineage.published = str(arguments["digest"])
        return
    if current is None or current.number != event.round or not current.is_open:
        raise BrokenLineage(f"{broken} concerns a round that is not open")
    if event.name is EventName.UPDATE_RECORDED:
        hospital = str(arguments["hospital"])
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
    elif event.name is EventName.UPDATE_REJECTED:
        update = current.updates.get(str(arguments["hospital"]))
        if update is None or update.reason or not int(arguments["reason"]):
            raise BrokenLineage(f"{broken} rejects what was not there to reject")
        update.reason = int(arguments["reason"])
    elif event.name is EventName.ROUND_CLOSED:
        accepted = len(current.accepted())
        if int(arguments["count"]) != accepted or accepted < current.quorum:
            raise BrokenLineage(f"{broken}: {accepted} accepted updates, {arguments['count']} claimed")
        current.global_digest = str(arguments["globalDigest"])
        current.contributions = str(arguments["contributions"])
    else:
        current.aborted = True


def _open(lineage: Lineage, event: LedgerEvent, broken: str) -> None:
    if event.round != len(lineage.rounds) + 1 or (lineage.rounds and lineage.rounds[-1].is_open):
        raise BrokenLineage(f"{broken} is out of order")
    base = str(event.arguments["base"])
    if lineage.rounds and base != lineage.head:
        raise BrokenLineage(f"{broken} does not start from the head")
    lineage.rounds.append(Round(event.round, base, int(event.arguments["quorum"])))

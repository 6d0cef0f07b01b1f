"""Rounds as the stored events have them: no call of the node, and no look at a round's updates.

The contract changes nothing of a round without an event, so its events say what it stores.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from concilia_kit.wire.chain import EventName, RoundStatus

from concilia_chain.events import Event
from concilia_chain.ledger import StoredRound
from concilia_chain.store import Store

_LOOK_SECONDS = 0.25
"""As in `roster`: how old it may be where another process stores events."""
_KEPT = 64


class KnownRound(NamedTuple):
    """A round without its updates: `events` are those about none of them, in chain order; `committed` is a Merkle
    round's commitment, once it is there."""

    stored: StoredRound
    merkle: bool
    committed: Event | None
    events: tuple[Event, ...]

    @property
    def is_collecting(self) -> bool:
        """Whether its updates are not on the chain yet."""
        return self.merkle and self.committed is None

    @classmethod
    def of(cls, events: Sequence[Event], counts: Mapping[str, int]) -> KnownRound:
        """A round by its events in chain order, and by how many of each name there are."""
        committed = first(events, EventName.UPDATES_COMMITTED)
        merkle = committed is not None or first(events, EventName.MERKLE_ROUND_OPENED) is not None
        return cls(_stored(events, counts, committed), merkle, committed, tuple(events))


class Rounds:
    """The rounds of one ledger that were asked for lately, kept until other events are stored. For many threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], tuple[int, float, KnownRound]] = OrderedDict()

    def of(self, job: str, number: int) -> KnownRound:
        """A round, whose `stored.status` is None where it was never opened. Raises `sqlalchemy.exc.DBAPIError`."""
        return self._at_once(job, number) or self._look(job, number)

    def _at_once(self, job: str, number: int) -> KnownRound | None:
        kept = self._kept.get((job, number))
        if kept is None or kept[0] != self._store.version or time.monotonic() - kept[1] >= _LOOK_SECONDS:
            return None
        return kept[2]

    def _look(self, job: str, number: int) -> KnownRound:
        with self._lock:  # of all who find it too old, one looks
            if (kept := self._at_once(job, number)) is not None:
                return kept
            version, now = self._store.version, time.monotonic()
            found = KnownRound.of(*self._store.events_of_round(job, number))
            if found.stored.status is not None:
                self._kept[job, number] = version, now, found
                self._kept.move_to_end((job, number))
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return found


def first(events: Iterable[Event], name: EventName) -> Event | None:
    """The first event of a name."""
    return next((event for event in events if event.name == name), None)


def _stored(events: Sequence[Event], counts: Mapping[str, int], committed: Event | None) -> StoredRound:
    opened = first(events, EventName.ROUND_OPENED)
    if opened is None:
        return StoredRound("", 0, 0, 0, 0, None)
    status = RoundStatus.OPEN
    if first(events, EventName.ROUND_CLOSED) is not None:
        status = RoundStatus.CLOSED
    elif first(events, EventName.ROUND_ABORTED) is not None:
        status = RoundStatus.ABORTED
    return StoredRound(
        base=str(opened.arguments["base"]),
        deadline=int(opened.arguments["deadline"]),
        quorum=int(opened.arguments["quorum"]),
        submitted=counts.get(EventName.UPDATE_RECORDED, 0) if committed is None else int(committed.arguments["count"]),
        rejected=counts.get(EventName.UPDATE_REJECTED, 0),
        status=status,
    )

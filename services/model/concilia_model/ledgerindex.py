"""Reads from the ledger which artifacts it names, a page of events at a time, each page once.

Pages come newest first and end where the newest event known stands. It is recognised by its transaction: where another
one stands there, or none, because the chain was reorganised or the service speaks to another one now, everything is
read again. Then the names that were learnt before stay, and rounds that nobody says are over are so no more. An
interrupted reading begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from concilia_kit import logs
from concilia_kit.wire.chain import EventName, RecordedEvent

from concilia_model.ledger import Ledger
from concilia_model.references import Learnt, Named, Opened, Place, References, Touched
from concilia_model.retention import Use

_ENDS = frozenset({EventName.ROUND_CLOSED, EventName.ROUND_ABORTED})
_log = logs.get(__name__)


class LedgerIndex:
    """Keeps `References` up to date with a `Ledger`."""

    def __init__(self, ledger: Ledger, references: References) -> None:
        self._ledger = ledger
        self._references = references

    def catch_up(self, now: float) -> int:
        """Read what is new; how many events that were. Raises `Problem` where the ledger is not told."""
        known = self._references.position()
        newest: Place | None = None
        before: str | None = None
        ended: set[tuple[str, int]] = set()
        count = 0
        while True:
            page = self._ledger.events(before)
            fresh: list[RecordedEvent] = []
            met = False
            for event in page.events:
                place = Place(event.block, event.log_index, event.transaction)
                newest = newest or place
                met = place == known
                if met:
                    break
                fresh.append(event)
            learnt = [each for event in fresh for each in self._said(event, now)]
            self._references.learn(learnt)
            ended.update((each.job, each.round) for each in learnt if isinstance(each, Touched) and each.over)
            count += len(fresh)
            before = page.before
            if met or before is None:
                break
        if known is not None and not met:
            _log.warning("ledger has another history, read anew", events=count)
            self._references.reopen(ended)
        if newest is not None:
            self._references.arrived(newest, now)
        if count:
            _log.info("ledger read", events=count)
        return count

    def _said(self, event: RecordedEvent, now: float) -> Iterator[Learnt]:
        """What an event says of artifacts and rounds."""
        job, number = event.job, event.round
        if job is None or number is None:
            return
        said = event.arguments
        # Without its block's time (a row from before these were kept) an event counts as of now: late is safe.
        at = now if event.at is None else event.at.timestamp()
        unnamed = False
        match event.name:
            case EventName.ROUND_OPENED:
                yield Opened(job, number, at, float(said["deadline"]))
                yield Named(str(said["base"]), job, number, Use.BASE)
            case EventName.UPDATE_RECORDED | EventName.UPDATE_PROVEN:
                yield Named(str(said["digest"]), job, number, Use.UPDATE)
            case EventName.UPDATES_COMMITTED:
                committed = self._ledger.round(job, number).updates
                unnamed = len(committed) < int(said["count"])
                for item in committed:
                    yield Named(item.update.digest, job, number, Use.UPDATE)
            case EventName.ROUND_CLOSED:
                yield Named(str(said["globalDigest"]), job, number, Use.GLOBAL)
            case EventName.MODEL_PUBLISHED:
                yield Named(str(said["digest"]), job, number, Use.GLOBAL)
        yield Touched(job, number, at, over=event.name in _ENDS, unnamed=unnamed)

"""Rooms of secure rounds as they are remembered, with what hospitals left in them for one another.

A room is moved on by one worker at a time, which its stage sees to; a message is written once and never changed. What
comes while a stage ends may stay behind: what counts is what the room froze.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from concilia_kit.database import reading
from concilia_kit.wire.masking import Parcel, Roster, Stage, Survivors, Unmasking

from concilia_aggregator import tables
from concilia_aggregator.masking.rules import ENDED, Room, begin

_rooms, _messages = tables.masking_rooms, tables.masking_messages
_KEPT = 8
"""Rosters that are remembered: one has a kilobyte a hospital, and is asked for with every message."""


class Kind(StrEnum):
    """What a message is; of each a hospital leaves one, of parcels one a recipient."""

    KEYS = "keys"
    SHARES = "shares"
    PARCEL = "parcel"
    CONSENT = "consent"
    REVEAL = "reveal"


class Taken(Exception):
    """There is a message of that kind by that hospital."""


class Rooms:
    """All reads and writes of rooms; each method is one transaction."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database
        self._reading = reading(database)
        self._rosters: OrderedDict[tuple[str, int], Roster] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, job: str, round_: int, now: float) -> None:
        """Make a round's room, if there is none; one that nobody has been in begins anew."""
        new = begin(job, round_, now)
        with self._database.begin() as connection:
            again = sa.update(_rooms).where(*_of(job, round_))
            if connection.execute(again.where(_rooms.c.stage == Stage.KEYS.value).values(since=now)).rowcount:
                return
            if connection.execute(sa.select(_rooms.c.stage).where(*_of(job, round_))).first() is None:
                connection.execute(sa.insert(_rooms), {"job": job, "round": round_, **_dump(new)})

    def get(self, job: str, round_: int) -> Room | None:
        """A round's room."""
        columns = [each for each in _rooms.c if each is not _rooms.c.roster]
        with self._reading.begin() as connection:
            row = connection.execute(sa.select(*columns).where(*_of(job, round_))).first()
            if row is None:
                return None
            stage = Stage(row.stage)
            has_roster = stage not in ENDED | {Stage.KEYS}
            roster = self._roster(connection, job, round_) if has_roster else None
        return Room(
            job=job,
            round=round_,
            stage=stage,
            since=row.since,
            roster=roster,
            sharers=tuple(row.sharers or ()),
            survivors=None if row.survivors is None else Survivors.model_validate(row.survivors),
            unmasking=None if row.unmasking is None else Unmasking.model_validate(row.unmasking),
            detail=row.detail,
        )

    def unmasking(self, job: str, round_: int) -> Unmasking | None:
        """What unmasks a round's sum, also after the round was closed."""
        with self._reading.begin() as connection:
            found = connection.execute(sa.select(_rooms.c.unmasking).where(*_of(job, round_))).scalar()
        return None if found is None else Unmasking.model_validate(found)

    def survivors(self, job: str, round_: int) -> Survivors | None:
        """Who is in a round's sum, once that is settled and until the round is over."""
        with self._reading.begin() as connection:
            found = connection.execute(sa.select(_rooms.c.survivors).where(*_of(job, round_))).scalar()
        return None if found is None else Survivors.model_validate(found)

    def stages(self) -> dict[tuple[str, int], Stage]:
        """Where every room stands that has not ended."""
        query = sa.select(_rooms.c.job, _rooms.c.round, _rooms.c.stage)
        going_on = _rooms.c.stage.not_in([each.value for each in ENDED])
        with self._reading.begin() as connection:
            return {(row.job, row.round): Stage(row.stage) for row in connection.execute(query.where(going_on))}

    def move(self, before: Room, after: Room) -> bool:
        """Move a room on; False where it is no more at the stage at which it was read."""
        if after == before:
            return True
        with self._database.begin() as connection:
            there = (*_of(before.job, before.round), _rooms.c.stage == before.stage.value)
            return connection.execute(sa.update(_rooms).where(*there).values(**_dump(after))).rowcount == 1

    def close(self, job: str, round_: int) -> None:
        """A round is over, closed or given up: nothing that was left in a room of the job up to this round stays, but,
        of sums that came to be, the secrets that their model's file has too."""
        rooms = sa.update(_rooms).where(_rooms.c.job == job, _rooms.c.round <= round_)
        with self._database.begin() as connection:
            connection.execute(sa.delete(_messages).where(_messages.c.job == job, _messages.c.round <= round_))
            given_up = rooms.where(_rooms.c.stage.not_in([each.value for each in ENDED]))
            connection.execute(given_up.values(stage=Stage.ABORTED.value, detail="the round was given up"))
            connection.execute(rooms.values(roster=None, sharers=None, survivors=None))
            connection.execute(rooms.where(_rooms.c.stage == Stage.ABORTED.value).values(unmasking=None))

    def add(
        self, kind: Kind, job: str, round_: int, sender: str, document: Any, parcels: Sequence[Parcel] = ()
    ) -> None:
        """Write a hospital's message, with the parcels that go with it. Raises `Taken`."""
        row = {"job": job, "round": round_, "kind": kind.value, "sender": sender, "recipient": ""}
        others = [
            {**row, "kind": Kind.PARCEL.value, "recipient": each.recipient, "document": each.sealed} for each in parcels
        ]
        try:
            with self._database.begin() as connection:
                connection.execute(sa.insert(_messages), [{**row, "document": document}, *others])
        except sa.exc.IntegrityError as error:
            if self.message(kind, job, round_, sender) is None:
                raise
            raise Taken(sender) from error

    def message(self, kind: Kind, job: str, round_: int, sender: str) -> Any | None:
        """A hospital's message."""
        place = (*_left(kind, job, round_), _messages.c.sender == sender)
        with self._reading.begin() as connection:
            return connection.execute(sa.select(_messages.c.document).where(*place)).scalar()

    def senders(self, kind: Kind, job: str, round_: int) -> frozenset[str]:
        """Who left a message of a kind."""
        with self._reading.begin() as connection:
            query = sa.select(_messages.c.sender).where(*_left(kind, job, round_))
            return frozenset(connection.execute(query).scalars())

    def messages(self, kind: Kind, job: str, round_: int) -> dict[str, Any]:
        """All messages of a kind by hospital."""
        query = sa.select(_messages.c.sender, _messages.c.document).where(*_left(kind, job, round_))
        with self._reading.begin() as connection:
            return {row.sender: row.document for row in connection.execute(query)}

    def parcels(self, job: str, round_: int, recipient: str) -> dict[str, Parcel]:
        """Parcels for a hospital by sender."""
        query = sa.select(_messages.c.sender, _messages.c.document).where(
            *_left(Kind.PARCEL, job, round_), _messages.c.recipient == recipient
        )
        with self._reading.begin() as connection:
            return {
                row.sender: Parcel(sender=row.sender, recipient=recipient, sealed=row.document)
                for row in connection.execute(query)
            }

    def _roster(self, connection: sa.Connection, job: str, round_: int) -> Roster:
        """The roster of a room that has one, which never changes."""
        place = job, round_
        with self._lock:
            known = self._rosters.get(place)
        if known is None:
            found = connection.execute(sa.select(_rooms.c.roster).where(*_of(job, round_))).scalar_one()
            known = Roster.model_validate(found)
            with self._lock:
                self._rosters[place] = known
                while len(self._rosters) > _KEPT:
                    self._rosters.popitem(last=False)
        return known


def _of(job: str, round_: int) -> tuple[sa.ColumnElement[bool], ...]:
    return _rooms.c.job == job, _rooms.c.round == round_


def _left(kind: Kind, job: str, round_: int) -> tuple[sa.ColumnElement[bool], ...]:
    return _messages.c.job == job, _messages.c.round == round_, _messages.c.kind == kind.value


def _dump(room: Room) -> Mapping[str, Any]:
    def json(document: Roster | Survivors | Unmasking | None) -> Any:
        return None if document is None else document.model_dump(mode="json")

    return {
        "stage": room.stage.value,
        "since": room.since,
        "roster": json(room.roster),
        "sharers": list(room.sharers) or None,
        "survivors": json(room.survivors),
        "unmasking": json(room.unmasking),
        "detail": room.detail[:500],
    }

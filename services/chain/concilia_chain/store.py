"""What the service remembers: a cache of the chain that can be read again, and what only it saw (metrics, times)."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa
from concilia_kit.database import reading
from concilia_kit.wire.chain import EventName, LedgerEvent
from concilia_kit.wire.training import UpdateMetrics

from concilia_chain.calls import Call
from concilia_chain.events import Event
from concilia_chain.membership import ROLE_EVENTS
from concilia_chain.pages import Place, Wanted
from concilia_chain.tables import deployments as _deployments
from concilia_chain.tables import events as _events
from concilia_chain.tables import metrics as _metrics
from concilia_chain.tables import sendings as _sendings

_OF_UPDATES = (EventName.UPDATE_RECORDED, EventName.UPDATE_REJECTED, EventName.LEAF_REJECTED)
_EVENT_COLUMNS = tuple(field.name for field in dataclasses.fields(Event))


class Deployment(NamedTuple):
    """A ledger on a chain; `block_hash` tells a chain that was started anew from the one before."""

    id: int
    chain_id: int
    address: str
    block: int
    block_hash: str


class Cursor(NamedTuple):
    """The last block whose events are stored."""

    block: int
    block_hash: str


class RoleMark(NamedTuple):
    """The newest role event, and the newest that is final: block, log index, the block's hash; None where there is
    none."""

    newest: tuple[int, int, str] | None
    final: tuple[int, int, str] | None

    @classmethod
    def of(cls, events: Sequence[Event], final: int) -> RoleMark:
        """The mark of all role events, in chain order."""
        places = [(event.block, event.log_index, event.block_hash) for event in events]
        return cls(max(places, default=None), max((each for each in places if each[0] <= final), default=None))

    @property
    def tag(self) -> str:
        """The mark as an entity tag's text (RFC 9110, 8.8.3)."""
        return "_".join("-".join(map(str, each)) if each else "0" for each in self)


class Store:
    """The memory of one ledger."""

    def __init__(self, database: sa.Engine, deployment: Deployment) -> None:
        self.deployment = deployment
        self.version = 0
        """Grows whenever this process stored or forgot events."""
        self._database = database
        self._reading = reading(database)

    # following

    def cursor(self) -> Cursor:
        """Where following stands."""
        with self._reading.begin() as connection:
            row = connection.execute(
                sa.select(_deployments.c.cursor, _deployments.c.cursor_hash).where(
                    _deployments.c.id == self.deployment.id
                )
            ).one()
        return Cursor(*row)

    def advance(self, before: Cursor, cursor: Cursor, events: Sequence[Event]) -> bool:
        """Store the events between two cursors and the second cursor, all or nothing.

        Nothing, and False, where following does not stand at the first cursor any more: another process followed
        meanwhile, on the same database.
        """
        rows = [
            {
                "deployment": self.deployment.id,
                **{column: getattr(event, column) for column in _EVENT_COLUMNS},
                "job": event.job,
                "round": event.round,
                "account": event.account,
                # Membership is read from the contract by whoever needs it; only jobs are told on the stream.
                "published": event.job is None,
            }
            for event in events
        ]
        with self._database.begin() as connection:
            if not self._moved(connection, before, cursor):
                return False
            if rows:
                connection.execute(sa.insert(_events), rows)
        self.version += 1
        return True

    def blocks_with_events(self) -> list[Cursor]:
        """The blocks whose events are stored, newest first."""
        with self._reading.begin() as connection:
            rows = connection.execute(
                sa.select(_events.c.block, _events.c.block_hash)
                .where(_events.c.deployment == self.deployment.id)
                .distinct()
                .order_by(_events.c.block.desc())
            ).all()
        return [Cursor(*row) for row in rows]

    def rewind(self, before: Cursor, cursor: Cursor) -> bool:
        """Forget the events of blocks after a cursor, which the chain dropped; what it sent in them comes again.

        Nothing, and False, where following does not stand at the first cursor any more, as with `advance`.
        """
        with self._database.begin() as connection:
            if not self._moved(connection, before, cursor):
                return False
            connection.execute(
                sa.delete(_events).where(_events.c.deployment == self.deployment.id, _events.c.block > cursor.block)
            )
            connection.execute(
                sa.update(_sendings)
                .where(
                    _sendings.c.deployment == self.deployment.id,
                    _sendings.c.block > cursor.block,
                    _sendings.c.nonce.is_not(None),
                )
                .values(state="pending", block=None, block_hash=None, transaction=None)
            )
        self.version += 1
        return True

    def _moved(self, connection: sa.Connection, before: Cursor, after: Cursor) -> bool:
        # First in its transaction: whoever comes second waits here, and finds that the cursor has gone.
        moved = connection.execute(
            sa.update(_deployments)
            .where(
                _deployments.c.id == self.deployment.id,
                _deployments.c.cursor == before.block,
                _deployments.c.cursor_hash == before.block_hash,
            )
            .values(cursor=after.block, cursor_hash=after.block_hash)
        )
        return moved.rowcount == 1

    # publishing

    def unpublished(self, limit: int) -> list[LedgerEvent]:
        """The oldest events of jobs that are not on the stream yet."""
        return [ledger_event(event) for event in self._select(_events.c.published.is_(False), limit=limit)]

    def mark_published(self, events: Sequence[LedgerEvent]) -> None:
        """Remember that events are on the stream."""
        place = (_events.c.block == sa.bindparam("at"), _events.c.log_index == sa.bindparam("index"))
        told = sa.update(_events).where(_events.c.deployment == self.deployment.id, *place).values(published=True)
        with self._database.begin() as connection:
            connection.execute(told, [{"at": event.block, "index": event.log_index} for event in events])

    # reading events

    def events_of_job(self, job: str, number: int | None = None) -> list[Event]:
        """A job's events in chain order, of one round or of all."""
        if number is None:
            return self._select(_events.c.job == job)
        with self._reading.begin() as connection:
            return self._events_of_round(connection, job, number)

    def events_of_round(self, job: str, number: int) -> tuple[list[Event], dict[str, int]]:
        """A round's events but those about hospitals' updates, in chain order, and how many of each name there are."""
        counting = sa.select(_events.c.name, sa.func.count()).where(*self._of_round(job, number))
        with self._reading.begin() as connection:
            counts = {str(name): int(count) for name, count in connection.execute(counting.group_by(_events.c.name))}
            return self._events_of_round(connection, job, number, _events.c.name.not_in(_OF_UPDATES)), counts

    def events_of_updates(self, job: str, number: int, hospital: str) -> list[Event]:
        """A round's events about one hospital's updates, in chain order."""
        mine = (_events.c.name.in_(_OF_UPDATES), _events.c.account == hospital)
        with self._reading.begin() as connection:
            return self._events_of_round(connection, job, number, *mine)

    def _of_round(self, job: str, number: int) -> tuple[sa.ColumnElement[bool], ...]:
        return (_events.c.deployment == self.deployment.id, _events.c.job == job, _events.c.round == number)

    def _events_of_round(
        self, connection: sa.Connection, job: str, number: int, *wanted: sa.ColumnElement[bool]
    ) -> list[Event]:
        query = sa.select(*(_events.c[column] for column in _EVENT_COLUMNS)).where(
            *self._of_round(job, number), *wanted
        )
        # Sorted here: asked for an order, SQLite goes through all events of the job.
        return sorted((Event(*row) for row in connection.execute(query)), key=_place)

    def effect_of(self, call: Call) -> Event | None:
        """The event by which a call's effect is known, if it is there: the first of those that fit."""
        if call.job is None or call.effect is None:
            return None
        name, arguments = call.effect
        events = self.events_of_job(call.job, call.round)
        return next(
            (each for each in events if each.name == name and each.arguments.items() >= arguments.items()), None
        )

    def newest(self, wanted: Wanted, before: Place | None, limit: int) -> list[Event]:
        """The newest of the events wanted, of those before a place where one is given, newest first."""
        column = _events.c
        place = sa.tuple_(column.block, column.log_index)
        conditions = [
            compare(left, value)
            for left, compare, value in (
                (column.job, operator.eq, wanted.job),
                (column.round, operator.eq, wanted.round),
                (column.account, operator.eq, wanted.account),
                (column.block, operator.ge, wanted.from_block),
                (column.block, operator.le, wanted.to_block),
                (place, operator.lt, before),
            )
            if value is not None
        ]
        if not wanted.names:
            return self._select(*conditions, limit=limit, newest=True)
        # Name by name: for several at once SQLite reads every event there is, 200 ms for 300,000.
        found = [
            event
            for name in set(wanted.names)
            for event in self._select(column.name == name, *conditions, limit=limit, newest=True)
        ]
        return sorted(found, key=_place, reverse=True)[:limit]

    def role_events(self) -> tuple[int, list[Event]]:
        """All role events in chain order, and the block up to which events are stored: both of one moment."""
        columns = [_events.c[column] for column in _EVENT_COLUMNS]
        concerned = sa.and_(_events.c.deployment == _deployments.c.id, _events.c.name.in_(ROLE_EVENTS))
        query = (
            sa.select(_deployments.c.cursor, *columns)
            .select_from(_deployments.outerjoin(_events, concerned))
            .where(_deployments.c.id == self.deployment.id)
        )
        with self._reading.begin() as connection:
            rows = connection.execute(query).all()
        events = [Event(*row[1:]) for row in rows if row[1] is not None]
        return rows[0][0], sorted(events, key=_place)

    def role_mark(self, final: int) -> RoleMark:
        """By which it is known whether a role changed: the newest role event, the newest in blocks up to `final`."""
        with self._reading.begin() as connection:
            newest = self._newest_of_roles(connection)
            if newest is None or newest[0] <= final:
                return RoleMark(newest, newest)
            return RoleMark(newest, self._newest_of_roles(connection, _events.c.block <= final))

    def _newest_of_roles(
        self, connection: sa.Connection, *wanted: sa.ColumnElement[bool]
    ) -> tuple[int, int, str] | None:
        found = []
        for name in ROLE_EVENTS:  # name by name, as in `newest`
            query = (
                sa.select(_events.c.block, _events.c.log_index, _events.c.block_hash)
                .where(_events.c.deployment == self.deployment.id, _events.c.name == name, *wanted)
                .order_by(_events.c.block.desc(), _events.c.log_index.desc())
                .limit(1)
            )
            if (row := connection.execute(query).first()) is not None:
                found.append((int(row[0]), int(row[1]), str(row[2])))
        return max(found, default=None)

    def accounts_granted(self, role: str) -> list[str]:
        """Accounts that were ever granted a role (64 hexadecimal characters), in order of the first grant."""
        events = self._select(_events.c.name == "RoleGranted")
        return list(dict.fromkeys(str(event.account) for event in events if event.arguments["role"] == role))

    def _select(
        self, *conditions: sa.ColumnElement[bool], limit: int | None = None, newest: bool = False
    ) -> list[Event]:
        order = [_events.c.block, _events.c.log_index]
        query = (
            sa.select(*(_events.c[column] for column in _EVENT_COLUMNS))
            .where(_events.c.deployment == self.deployment.id, *conditions)
            .order_by(*(column.desc() for column in order) if newest else order)
            .limit(limit)
        )
        with self._reading.begin() as connection:
            return [Event(*row) for row in connection.execute(query)]

    # metrics

    def metrics(self, digests: Sequence[str]) -> dict[str, UpdateMetrics]:
        """Metrics by their digests, as far as they are kept."""
        with self._reading.begin() as connection:
            rows = connection.execute(
                sa.select(_metrics.c.digest, _metrics.c.document).where(_metrics.c.digest.in_(digests))
            ).all()
        return {digest: UpdateMetrics.model_validate(document) for digest, document in rows}


def deployments(database: sa.Engine, chain_id: int, address: str | None = None) -> list[Deployment]:
    """Known ledgers of a chain, newest first; those at one address where it is given."""
    columns = (_deployments.c[name] for name in Deployment._fields)
    query = sa.select(*columns).where(_deployments.c.chain_id == chain_id).order_by(_deployments.c.id.desc())
    if address is not None:
        query = query.where(_deployments.c.address == address)
    with database.begin() as connection:
        return [Deployment(*row) for row in connection.execute(query)]


def remember(
    database: sa.Engine, chain_id: int, address: str, block: int, block_hash: str, before: Cursor
) -> Deployment:
    """Keep a ledger; following starts after `before`."""
    with database.begin() as connection:
        made = connection.execute(
            sa.insert(_deployments)
            .values(
                chain_id=chain_id,
                address=address,
                block=block,
                block_hash=block_hash,
                cursor=before.block,
                cursor_hash=before.block_hash,
            )
            .returning(_deployments.c.id)
        ).scalar_one()
    return Deployment(made, chain_id, address, block, block_hash)


def ledger_event(event: Event) -> LedgerEvent:
    """An event of a job as it crosses the wire."""
    return LedgerEvent.model_validate(
        {
            **{name: getattr(event, name) for name in ("name", "block", "log_index", "transaction", "arguments")},
            "job": event.job,
            "round": event.round,
        }
    )


def _place(event: Event) -> Place:
    return Place(event.block, event.log_index)

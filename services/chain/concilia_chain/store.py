"""What the service remembers: a cache of the chain that can be read again, and what only it saw (metrics, times)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa
from concilia_kit.wire.chain import LedgerEvent, Transaction
from concilia_kit.wire.training import UpdateMetrics

from concilia_chain.events import Event

_tables = sa.MetaData()
_deployments = sa.Table(
    "deployments",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("chain_id", sa.BigInteger),
    sa.Column("address", sa.String(42)),
    sa.Column("block", sa.BigInteger),
    sa.Column("block_hash", sa.String(66)),
    sa.Column("cursor", sa.BigInteger),
    sa.Column("cursor_hash", sa.String(66)),
)
_events = sa.Table(
    "events",
    _tables,
    sa.Column("deployment", sa.Integer, primary_key=True),
    sa.Column("block", sa.BigInteger, primary_key=True),
    sa.Column("log_index", sa.Integer, primary_key=True),
    sa.Column("block_hash", sa.String(66)),
    sa.Column("transaction", sa.String(66)),
    sa.Column("name", sa.String(64)),
    sa.Column("job", sa.String(64)),
    sa.Column("round", sa.BigInteger),
    sa.Column("account", sa.String(42)),
    sa.Column("arguments", sa.JSON),
    sa.Column("signature", sa.Text),
    sa.Column("published", sa.Boolean),
)
_metrics = sa.Table(
    "metrics", _tables, sa.Column("digest", sa.String(64), primary_key=True), sa.Column("document", sa.JSON)
)
_transactions = sa.Table(
    "transactions",
    _tables,
    sa.Column("deployment", sa.Integer, primary_key=True),
    sa.Column("transaction", sa.String(66), primary_key=True),
    sa.Column("block", sa.BigInteger),
    sa.Column("gas", sa.BigInteger),
    sa.Column("received_at", sa.Double),
    sa.Column("sent_at", sa.Double),
    sa.Column("confirmed_at", sa.Double),
    sa.Column("function", sa.String(64)),
    sa.Column("job", sa.String(64)),
    sa.Column("round", sa.BigInteger),
    sa.Column("hospital", sa.String(42)),
)
_EVENT_COLUMNS = ("name", "arguments", "block", "block_hash", "log_index", "transaction", "signature")


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


class Store:
    """The memory of one ledger."""

    def __init__(self, database: sa.Engine, deployment: Deployment) -> None:
        self.deployment = deployment
        self._database = database

    # following

    def cursor(self) -> Cursor:
        """Where following stands."""
        with self._database.begin() as connection:
            row = connection.execute(
                sa.select(_deployments.c.cursor, _deployments.c.cursor_hash).where(
                    _deployments.c.id == self.deployment.id
                )
            ).one()
        return Cursor(*row)

    def advance(self, cursor: Cursor, events: Sequence[Event]) -> None:
        """Store events and the cursor behind them, both or neither."""
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
            if rows:
                connection.execute(sa.insert(_events), rows)
            self._set_cursor(connection, cursor)

    def blocks_with_events(self) -> list[Cursor]:
        """The blocks whose events are stored, newest first."""
        with self._database.begin() as connection:
            rows = connection.execute(
                sa.select(_events.c.block, _events.c.block_hash)
                .where(_events.c.deployment == self.deployment.id)
                .distinct()
                .order_by(_events.c.block.desc())
            ).all()
        return [Cursor(*row) for row in rows]

    def rewind(self, cursor: Cursor) -> None:
        """Forget the events of blocks after a cursor, which the chain dropped."""
        with self._database.begin() as connection:
            connection.execute(
                sa.delete(_events).where(_events.c.deployment == self.deployment.id, _events.c.block > cursor.block)
            )
            self._set_cursor(connection, cursor)

    def _set_cursor(self, connection: sa.Connection, cursor: Cursor) -> None:
        connection.execute(
            sa.update(_deployments)
            .where(_deployments.c.id == self.deployment.id)
            .values(cursor=cursor.block, cursor_hash=cursor.block_hash)
        )

    # publishing

    def unpublished(self, limit: int) -> list[LedgerEvent]:
        """The oldest events of jobs that are not on the stream yet."""
        return [ledger_event(event) for event in self._select(_events.c.published.is_(False), limit=limit)]

    def mark_published(self, event: LedgerEvent) -> None:
        """Remember that an event is on the stream."""
        with self._database.begin() as connection:
            connection.execute(
                sa.update(_events)
                .where(
                    _events.c.deployment == self.deployment.id,
                    _events.c.block == event.block,
                    _events.c.log_index == event.log_index,
                )
                .values(published=True)
            )

    # reading events

    def events_of_job(self, job: str, number: int | None = None) -> list[Event]:
        """A job's events in chain order, of one round or of all."""
        conditions = [_events.c.job == job]
        if number is not None:
            conditions.append(_events.c.round == number)
        return self._select(*conditions)

    def accounts_granted(self, role: str) -> list[str]:
        """Accounts that were ever granted a role (64 hexadecimal characters), in order of the first grant."""
        events = self._select(_events.c.name == "RoleGranted")
        return list(dict.fromkeys(str(event.account) for event in events if event.arguments["role"] == role))

    def _select(self, *conditions: sa.ColumnElement[bool], limit: int | None = None) -> list[Event]:
        query = (
            sa.select(*(_events.c[column] for column in _EVENT_COLUMNS))
            .where(_events.c.deployment == self.deployment.id, *conditions)
            .order_by(_events.c.block, _events.c.log_index)
            .limit(limit)
        )
        with self._database.begin() as connection:
            return [Event(*row) for row in connection.execute(query)]

    # metrics

    def put_metrics(self, digest: str, metrics: UpdateMetrics) -> None:
        """Keep metrics under their digest; keeping them again changes nothing."""
        # A second insert fails on the key, on every database alike; two hospitals may have measured the same.
        with contextlib.suppress(sa.exc.IntegrityError), self._database.begin() as connection:
            connection.execute(sa.insert(_metrics).values(digest=digest, document=metrics.model_dump(mode="json")))

    def metrics(self, digests: Sequence[str]) -> dict[str, UpdateMetrics]:
        """Metrics by their digests, as far as they are kept."""
        with self._database.begin() as connection:
            rows = connection.execute(
                sa.select(_metrics.c.digest, _metrics.c.document).where(_metrics.c.digest.in_(digests))
            ).all()
        return {digest: UpdateMetrics.model_validate(document) for digest, document in rows}

    # transactions

    def put_transaction(self, transaction: Transaction) -> None:
        """Keep what a transaction did and when."""
        values = transaction.model_dump()
        for name in ("received_at", "sent_at", "confirmed_at"):
            values[name] = values[name].timestamp()
        with self._database.begin() as connection:
            connection.execute(sa.insert(_transactions).values(deployment=self.deployment.id, **values))

    def transaction(self, transaction: str) -> Transaction | None:
        """One of the relay's transactions by its hash."""
        found = self._transactions(_transactions.c.transaction == transaction, limit=1)
        return found[0] if found else None

    def transactions(self, job: str | None, limit: int) -> list[Transaction]:
        """The relay's newest transactions, newest first, of one job or of all."""
        conditions = [] if job is None else [_transactions.c.job == job]
        return self._transactions(*conditions, limit=limit)

    def _transactions(self, *conditions: sa.ColumnElement[bool], limit: int) -> list[Transaction]:
        columns = [column for column in _transactions.c if column.name != "deployment"]
        query = (
            sa.select(*columns)
            .where(_transactions.c.deployment == self.deployment.id, *conditions)
            .order_by(_transactions.c.confirmed_at.desc(), _transactions.c.transaction)
            .limit(limit)
        )
        with self._database.begin() as connection:
            rows = connection.execute(query).mappings().all()
        times = ("received_at", "sent_at", "confirmed_at")
        return [
            Transaction(**{**row, **{name: datetime.fromtimestamp(row[name], UTC) for name in times}}) for row in rows
        ]


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

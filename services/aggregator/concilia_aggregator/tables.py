"""The database's tables, as `migrations/` makes them, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa

metadata = sa.MetaData()
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("spec", sa.JSON),
    sa.Column("state", sa.JSON),
    sa.Column("phase", sa.String(16)),
    sa.Column("version", sa.Integer),
    sa.Column("created_at", sa.Float),
    sa.Column("created_by", sa.String(42)),
    sa.Column("manifest", sa.JSON(none_as_null=True)),
    sa.Column("idempotency_key", sa.String(128)),
    sa.Index("ix_jobs_created_by_key", "created_by", "idempotency_key", unique=True),
)
rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("base", sa.String(64)),
    sa.Column("model", sa.String(64)),
    sa.Column("deadline", sa.BigInteger),
    sa.Column("opened_at", sa.Float),
    sa.Column("closed_at", sa.Float),
    sa.Column("summary", sa.JSON),
)
nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("address", sa.String(42), primary_key=True),
    sa.Column("registration", sa.JSON),
    sa.Column("seen_at", sa.Float),
)
reports = sa.Table(
    "reports",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("hospital", sa.String(42), primary_key=True),
    sa.Column("report", sa.JSON),
)
progress = sa.Table(
    "progress",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("hospital", sa.String(42), primary_key=True),
    sa.Column("progress", sa.JSON),
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job", sa.String(64)),
    sa.Column("hospital", sa.String(42)),
    sa.Column("name", sa.String(64)),
    sa.Column("task", sa.JSON),
)
verifications = sa.Table(
    "verifications",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("job", sa.String(64)),
    sa.Column("state", sa.String(16)),
    sa.Column("fraction", sa.Float),
    sa.Column("step", sa.String(200)),
    sa.Column("verdict", sa.JSON(none_as_null=True)),
    sa.Column("detail", sa.Text),
    sa.Column("asked_by", sa.String(42)),
    sa.Column("asked_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("attempts", sa.Integer),
)
masking_rooms = sa.Table(
    "masking_rooms",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("stage", sa.String(16)),
    sa.Column("since", sa.Float),
    sa.Column("roster", sa.JSON(none_as_null=True)),
    sa.Column("sharers", sa.JSON(none_as_null=True)),
    sa.Column("survivors", sa.JSON(none_as_null=True)),
    sa.Column("unmasking", sa.JSON(none_as_null=True)),
    sa.Column("detail", sa.String(500)),
)
masking_messages = sa.Table(
    "masking_messages",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("sender", sa.String(42), primary_key=True),
    sa.Column("recipient", sa.String(42), primary_key=True),
    sa.Column("document", sa.JSON),
)

noise_keys = sa.Table(
    "noise_keys",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("contributions", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64)),
)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job: what was asked for, and its state as `rounds.JobState`; no manifest where it is from before there were."""

    id: str
    spec: Mapping[str, Any]
    state: Mapping[str, Any]
    phase: str
    version: int
    created_at: float
    created_by: str
    manifest: Mapping[str, Any] | None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round's times and, once closed, its summary. Round 0 is the evaluation of the initial model."""

    job: str
    round: int
    base: str | None = None
    model: str | None = None
    deadline: int | None = None
    opened_at: float | None = None
    closed_at: float | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as it registered, and when it was last heard of."""

    address: str
    registration: Mapping[str, Any]
    seen_at: float


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A task for a node that was decided and not yet handed to the broker; it has an id once it is stored."""

    job: str
    hospital: str
    name: str
    task: dict[str, Any]
    id: int | None = None


@dataclass(frozen=True, slots=True)
class VerificationRow:
    """A verification. `attempts` is how many workers have begun it."""

    id: str
    job: str
    state: str
    fraction: float
    step: str
    verdict: Mapping[str, Any] | None
    detail: str
    asked_by: str
    asked_at: float
    finished_at: float | None
    attempts: int


Row = TypeVar("Row", JobRow, RoundRow, NodeRow, OutboxRow, VerificationRow)


def rows(connection: sa.Connection, query: sa.Select[Any], kind: type[Row]) -> list[Row]:
    """What a query of all of a table's columns finds."""
    return [kind(**found) for found in connection.execute(query).mappings()]


def row(connection: sa.Connection, query: sa.Select[Any], kind: type[Row]) -> Row | None:
    """The one row that a query finds, if it does."""
    found = connection.execute(query).mappings().first()
    return None if found is None else kind(**found)

"""What the ledger says of artifacts, as this service keeps it: the uses of each digest, the standing of each round, and
how far the ledger was read.

Learnt by `ledgerindex`, and asked for facts by `storage`. Learning the same again changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from concilia_kit.database import reading as reading_only
from sqlalchemy.dialects import postgresql, sqlite

from concilia_model.retention import Facts, Reading, Use, may_take
from concilia_model.tables import artifact_owners, artifacts, ledger_position, ledger_rounds, ledger_uses, models

_ROWS = 1000  # of a result, held at one time


@dataclass(frozen=True, slots=True)
class Place:
    """An event's place on the chain; another chain, or another history of it, has another transaction there."""

    block: int
    log_index: int
    transaction: str


@dataclass(frozen=True, slots=True)
class Named:
    """A round's record names an artifact."""

    digest: str
    job: str
    round: int
    use: Use


@dataclass(frozen=True, slots=True)
class Opened:
    """A round began, and takes updates until its deadline; Unix seconds."""

    job: str
    round: int
    at: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Touched:
    """The ledger said something of a round; `over` where that ended it, `unnamed` where not all that it committed can
    be told."""

    job: str
    round: int
    at: float
    over: bool = False
    unnamed: bool = False


Learnt = Named | Opened | Touched


class References:
    """Reads and writes of one database. Every method is one transaction."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database
        self._reading = reading_only(database)

    def position(self) -> Place | None:
        """The newest event read, when all before it was."""
        with self._reading.begin() as connection:
            row = connection.execute(sa.select(ledger_position)).one_or_none()
        return None if row is None else Place(row.block, row.log_index, row.transaction)

    def read_at(self) -> float | None:
        """When the ledger was last read to its end; Unix seconds."""
        with self._reading.begin() as connection:
            return connection.scalar(sa.select(ledger_position.c.read_at))

    def learn(self, learnt: Iterable[Learnt]) -> None:
        """Take in what events say, in any order."""
        with self._database.begin() as connection:
            for each in sorted(learnt, key=lambda item: not isinstance(item, Opened)):
                match each:
                    case Named():
                        _insert_new(
                            connection, ledger_uses, digest=each.digest, job=each.job, round=each.round, use=each.use
                        )
                    case Opened():
                        _have_round(connection, each.job, each.round, each.at)
                        connection.execute(_round(each).values(opened_at=each.at, deadline=each.deadline))
                    case Touched():
                        _have_round(connection, each.job, each.round, each.at)
                        values: dict[str, bool] = {"over": True} if each.over else {}
                        values |= {"named": False} if each.unnamed else {}
                        if values:
                            connection.execute(_round(each).values(**values))
                if isinstance(each, Opened | Touched):
                    connection.execute(_round(each).where(ledger_rounds.c.last_at < each.at).values(last_at=each.at))

    def reopen(self, ended: Collection[tuple[str, int]]) -> None:
        """Everything was read again: of the rounds that were thought to be over only those are, by job and number, of
        which that was still said."""
        over = sa.select(ledger_rounds.c.job, ledger_rounds.c.round).where(ledger_rounds.c.over)
        with self._database.begin() as connection:
            for job, number in [(row.job, row.round) for row in connection.execute(over)]:
                if (job, number) not in ended:
                    this = sa.and_(ledger_rounds.c.job == job, ledger_rounds.c.round == number)
                    connection.execute(ledger_rounds.update().where(this).values(over=False))

    def arrived(self, place: Place, now: float) -> None:
        """Everything up to an event is learnt."""
        values = {"id": 1, "block": place.block, "log_index": place.log_index, "transaction": place.transaction}
        with self._database.begin() as connection:
            connection.execute(ledger_position.delete())
            connection.execute(ledger_position.insert().values(**values, read_at=now))

    def reading(self, now: float) -> Reading | None:
        """How far the ledger is known; None where nothing of it is."""
        with self._reading.begin() as connection:
            if connection.scalar(sa.select(ledger_position.c.read_at)) is None:
                return None
            rounds = connection.execute(sa.select(ledger_rounds).order_by(ledger_rounds.c.opened_at)).yield_per(_ROWS)
            since, taking = None, None
            for row in rounds:
                since = row.opened_at if since is None else since
                taking = may_take(
                    opened_at=row.opened_at, deadline=row.deadline, over=row.over, named=row.named, now=now
                )
                if taking is not None:
                    break
        return None if since is None else Reading(since, taking)

    def facts(self) -> Iterator[Facts]:
        """Of every artifact that is not removed what is known."""
        with self._reading.connect() as connection:
            for row in connection.execution_options(yield_per=_ROWS).execute(_FACTS):
                values = row._asdict()
                created = values.pop("created_at")
                yield Facts(**{**values, "brought_at": max(row.brought_at, created), "job_open": bool(row.job_open)})


def _round(each: Opened | Touched) -> sa.Update:
    return ledger_rounds.update().where(ledger_rounds.c.job == each.job, ledger_rounds.c.round == each.round)


def _have_round(connection: sa.Connection, job: str, number: int, at: float) -> None:
    """A row for a round whose opening may be read only later: until then it takes updates, and since long ago."""
    values = {"job": job, "round": number, "opened_at": at, "deadline": at, "last_at": at}
    _insert_new(connection, ledger_rounds, **values, over=False, named=True)


def _insert_new(connection: sa.Connection, table: sa.Table, **values: object) -> None:
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    connection.execute(insert.values(**values).on_conflict_do_nothing())


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def _statement() -> sa.Select[tuple[object, ...]]:
    use, number = ledger_uses.c.use, ledger_uses.c.round
    jobs = (
        sa.select(
            ledger_rounds.c.job,
            sa.func.max(ledger_rounds.c.last_at).label("last_at"),
            _count(sa.not_(ledger_rounds.c.over)).label("not_over"),
        )
        .group_by(ledger_rounds.c.job)
        .subquery()
    )
    uses = (
        sa.select(
            ledger_uses.c.digest,
            _count(sa.and_(use == Use.BASE, number == 1)).label("first_bases"),
            _count(use == Use.BASE).label("bases"),
            _count(use == Use.GLOBAL).label("globals_"),
            _count(use == Use.UPDATE).label("updates"),
            sa.func.max(sa.case((use == Use.UPDATE, jobs.c.last_at))).label("job_last_at"),
            # A job of which no round is known counts as under way.
            _count(sa.and_(use == Use.UPDATE, sa.func.coalesce(jobs.c.not_over, 1) > 0)).label("job_open"),
        )
        .outerjoin(jobs, jobs.c.job == ledger_uses.c.job)
        .group_by(ledger_uses.c.digest)
        .subquery()
    )
    # What hospitals alone bring keeps nothing: their updates and orphans go, and must not hold others' back.
    over = artifacts.alias()
    adapters = (
        sa.select(over.c.trunk, sa.func.count(sa.distinct(over.c.digest)).label("adapters"))
        .join(artifact_owners, artifact_owners.c.digest == over.c.digest)
        .where(over.c.trunk.is_not(None), artifact_owners.c.shared)
        .group_by(over.c.trunk)
        .subquery()
    )
    owners = artifact_owners.c
    shared = sa.exists(sa.select(owners.digest).where(owners.digest == artifacts.c.digest, owners.shared))
    return (
        sa.select(
            *(artifacts.c[name] for name in ("digest", "size", "brought_at", "created_at")),
            shared.label("shared"),
            sa.exists(sa.select(models.c.job).where(models.c.digest == artifacts.c.digest)).label("registered"),
            *(
                sa.func.coalesce(uses.c[name], 0).label(name)
                for name in ("first_bases", "bases", "globals_", "updates", "job_open")
            ),
            sa.func.coalesce(adapters.c.adapters, 0).label("adapters"),
            uses.c.job_last_at,
        )
        .outerjoin(adapters, adapters.c.trunk == artifacts.c.digest)
        .outerjoin(uses, uses.c.digest == artifacts.c.digest)
        .where(artifacts.c.removed_at.is_(None))
        .order_by(artifacts.c.digest)
    )


_FACTS = _statement()

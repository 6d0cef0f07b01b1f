"""Verifications as they are remembered: who asked for which, how far they are, what they came to.

The table is the queue. A worker that takes one counts its attempt, and may change it only as long as that is the last.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from concilia_kit.wire.changes import Change
from concilia_kit.wire.verification import Verdict, Verification, VerificationState
from sqlalchemy.exc import IntegrityError

from concilia_aggregator import tables
from concilia_aggregator.changes import Tell, nobody
from concilia_aggregator.errors import VerificationNotFound
from concilia_aggregator.store import Store, moment
from concilia_aggregator.tables import VerificationRow, verifications

UNFINISHED = (VerificationState.QUEUED.value, VerificationState.RUNNING.value)


class Superseded(Exception):
    """Another worker has taken the verification up meanwhile, or it is over."""


class Verifications:
    """All reads and writes of verifications; each method is one transaction, and told once it is committed."""

    def __init__(self, database: sa.Engine, store: Store, tell: Tell = nobody) -> None:
        self._tell = tell
        self._database = database
        self._store = store

    def ask(self, job: str, caller: str) -> tuple[VerificationRow, bool]:
        """Queue a verification; the unfinished one and False where there is one. Raises `JobNotFound`."""
        self._store.job(job)
        while True:
            row = VerificationRow(
                id=secrets.token_hex(16),
                job=job,
                state=VerificationState.QUEUED.value,
                fraction=0.0,
                step="waiting for its turn",
                verdict=None,
                detail="",
                asked_by=caller,
                asked_at=time.time(),
                finished_at=None,
                attempts=0,
            )
            try:
                with self._database.begin() as connection:
                    connection.execute(sa.insert(verifications), asdict(row))
            except IntegrityError:
                if unfinished := self._unfinished(verifications.c.job == job):
                    return unfinished[0], False
            else:
                return self._told(row), True

    def of(self, job: str) -> list[VerificationRow]:
        """A job's verifications, newest first. Raises `JobNotFound`."""
        self._store.job(job)
        query = sa.select(verifications).where(verifications.c.job == job)
        with self._database.begin() as connection:
            newest_first = query.order_by(verifications.c.asked_at.desc(), verifications.c.id)
            return tables.rows(connection, newest_first, VerificationRow)

    def get(self, verification: str) -> VerificationRow:
        """One verification. Raises `VerificationNotFound`."""
        query = sa.select(verifications).where(verifications.c.id == verification)
        with self._database.begin() as connection:
            row = tables.row(connection, query, VerificationRow)
        if row is None:
            raise VerificationNotFound(f"there is no verification {verification}")
        return row

    def unfinished(self) -> Sequence[VerificationRow]:
        """Those that wait or run, oldest first. One that runs may have lost its worker."""
        return self._unfinished(sa.true())

    def take(self, row: VerificationRow) -> VerificationRow:
        """Begin a verification, or begin it again. Raises `Superseded`."""
        return self._update(row, state=VerificationState.RUNNING.value, attempts=row.attempts + 1)

    def note(self, row: VerificationRow, fraction: float, step: str) -> VerificationRow:
        """Remember how far a verification is, never back. Raises `Superseded`."""
        return self._update(row, fraction=max(fraction, row.fraction), step=step[:200])

    def put_back(self, row: VerificationRow) -> None:
        """A worker that ends leaves a verification to the next; this attempt does not count. Raises `Superseded`."""
        self._update(row, state=VerificationState.QUEUED.value, attempts=row.attempts - 1)

    def finish(self, row: VerificationRow, verdict: Verdict) -> VerificationRow:
        """A verification came to a verdict. Raises `Superseded`."""
        return self._end(
            row, VerificationState.DONE, fraction=1.0, step="done", verdict=verdict.model_dump(mode="json")
        )

    def fail(self, row: VerificationRow, detail: str) -> VerificationRow:
        """A verification cannot be brought to an end. Raises `Superseded`."""
        return self._end(row, VerificationState.FAILED, detail=detail)

    def _end(self, row: VerificationRow, state: VerificationState, **values: Any) -> VerificationRow:
        return self._update(row, state=state.value, finished_at=time.time(), **values)

    def _unfinished(self, which: sa.ColumnElement[bool]) -> list[VerificationRow]:
        query = sa.select(verifications).where(verifications.c.state.in_(UNFINISHED), which)
        with self._database.begin() as connection:
            oldest_first = query.order_by(verifications.c.asked_at, verifications.c.id)
            return tables.rows(connection, oldest_first, VerificationRow)

    def _update(self, row: VerificationRow, **values: Any) -> VerificationRow:
        with self._database.begin() as connection:
            changed = connection.execute(
                sa.update(verifications)
                .where(
                    verifications.c.id == row.id,
                    verifications.c.attempts == row.attempts,
                    verifications.c.state.in_(UNFINISHED),
                )
                .values(**values)
            )
            if changed.rowcount != 1:
                raise Superseded(row.id)
        return self._told(self.get(row.id))

    def _told(self, row: VerificationRow) -> VerificationRow:
        self._tell(row.job, Change.VERIFICATION, shown(row).brief())
        return row


def shown(row: VerificationRow) -> Verification:
    """A verification as the API tells it."""
    asked_at = moment(row.asked_at)
    assert asked_at is not None
    return Verification(
        id=row.id,
        job=row.job,
        state=VerificationState(row.state),
        fraction=row.fraction,
        step=row.step,
        verdict=None if row.verdict is None else Verdict.model_validate(row.verdict),
        detail=row.detail,
        asked_by=row.asked_by,
        asked_at=asked_at,
        finished_at=moment(row.finished_at),
    )

"""What the aggregator remembers, in SQL: jobs, rounds, nodes, evaluations, progress, and tasks still to be sent.

A change of a job's state and the tasks that follow from it are committed together (outbox); a second writer of the same
state is refused by its version.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from concilia_kit.wire.jobs import JobManifest, JobSpec, Phase
from concilia_kit.wire.training import EvaluationReport, NodeRegistration, Progress
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from concilia_aggregator.errors import JobNotFound
from concilia_aggregator.rounds import TERMINAL, JobState


class Base(DeclarativeBase):
    """Declarative base of the aggregator's tables."""


class JobRow(Base):
    """A job: what was asked for, and its state as `rounds.JobState`; no manifest where it is from before there were."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    state: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    phase: Mapped[str] = mapped_column(sa.String(16), index=True)
    version: Mapped[int] = mapped_column(sa.Integer)
    created_at: Mapped[float] = mapped_column(sa.Float)
    created_by: Mapped[str] = mapped_column(sa.String(42))
    manifest: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))


class RoundRow(Base):
    """A round's times and, once closed, its summary. Round 0 is the evaluation of the initial model."""

    __tablename__ = "rounds"
    job: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    base: Mapped[str | None] = mapped_column(sa.String(64))
    model: Mapped[str | None] = mapped_column(sa.String(64))
    deadline: Mapped[int | None] = mapped_column(sa.BigInteger)
    opened_at: Mapped[float | None] = mapped_column(sa.Float)
    closed_at: Mapped[float | None] = mapped_column(sa.Float)
    summary: Mapped[dict[str, Any]] = mapped_column(sa.JSON, default=dict)


class NodeRow(Base):
    """A node as it registered, and when it was last heard of."""

    __tablename__ = "nodes"
    address: Mapped[str] = mapped_column(sa.String(42), primary_key=True)
    registration: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    seen_at: Mapped[float] = mapped_column(sa.Float)


class ReportRow(Base):
    """A site's evaluation of a round's model."""

    __tablename__ = "reports"
    job: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    hospital: Mapped[str] = mapped_column(sa.String(42), primary_key=True)
    report: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class ProgressRow(Base):
    """The last progress a node reported in a round."""

    __tablename__ = "progress"
    job: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    hospital: Mapped[str] = mapped_column(sa.String(42), primary_key=True)
    progress: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class OutboxRow(Base):
    """A task for a node that was decided and not yet handed to the broker."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    job: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), index=True)
    hospital: Mapped[str] = mapped_column(sa.String(42))
    name: Mapped[str] = mapped_column(sa.String(64))
    task: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class StaleState(Exception):
    """Somebody else changed the job meanwhile; read it again."""


class Store:
    """All reads and writes; each method is one transaction."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database

    def add_job(
        self, job: str, spec: JobSpec, state: JobState, creator: str, manifest: JobManifest | None = None
    ) -> None:
        """Remember a new job, as created when its manifest says."""
        created_at = datetime.fromisoformat(manifest.created_at).timestamp() if manifest else time.time()
        row = JobRow(
            id=job,
            spec=spec.model_dump(mode="json"),
            state=_dump(state),
            phase=state.phase.value,
            version=0,
            created_at=created_at,
            created_by=creator,
            manifest=manifest.model_dump(mode="json") if manifest else None,
        )
        with Session(self._database) as session, session.begin():
            session.add(row)
            session.flush()
            session.add(RoundRow(job=job, round=0, model=spec.initial, opened_at=time.time(), summary={}))

    def jobs(self) -> list[JobRow]:
        """All jobs, newest first."""
        with Session(self._database) as session:
            return list(session.scalars(sa.select(JobRow).order_by(JobRow.created_at.desc())))

    def phases(self) -> dict[str, int]:
        """How many jobs are in each phase, those in which none is included."""
        with Session(self._database) as session:
            counted = session.execute(sa.select(JobRow.phase, sa.func.count()).group_by(JobRow.phase)).all()
        return {phase.value: 0 for phase in Phase} | {row[0]: row[1] for row in counted}

    def active(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        ended = [phase.value for phase in TERMINAL]
        with Session(self._database) as session:
            return list(session.scalars(sa.select(JobRow.id).where(JobRow.phase.not_in(ended))))

    def job(self, job: str) -> JobRow:
        """One job. Raises `JobNotFound`."""
        with Session(self._database) as session:
            row = session.get(JobRow, job)
        if row is None:
            raise JobNotFound(f"there is no job {job[:12]}…")
        return row

    def save(
        self, row: JobRow, state: JobState, *, tasks: Sequence[OutboxRow] = (), round_: RoundRow | None = None
    ) -> None:
        """Move a job from the state it was read with to `state`, with the tasks and the round that go with it.

        Raises `StaleState` where the job changed since `row` was read.
        """
        with Session(self._database) as session, session.begin():
            changed = session.execute(
                sa.update(JobRow)
                .where(JobRow.id == row.id, JobRow.version == row.version)
                .values(state=_dump(state), phase=state.phase.value, version=row.version + 1)
            )
            if changed.rowcount != 1:  # type: ignore[attr-defined]
                raise StaleState(row.id)
            session.add_all(tasks)
            if round_ is not None:
                session.merge(round_)

    def unsent(self, job: str) -> list[OutboxRow]:
        """Tasks of a job still to be handed to the broker, oldest first."""
        with Session(self._database) as session:
            return list(session.scalars(sa.select(OutboxRow).where(OutboxRow.job == job).order_by(OutboxRow.id)))

    def sent(self, row: OutboxRow) -> None:
        """The broker has the task."""
        with Session(self._database) as session, session.begin():
            session.execute(sa.delete(OutboxRow).where(OutboxRow.id == row.id))

    def rounds(self, job: str) -> list[RoundRow]:
        """A job's rounds in order, round 0 first."""
        with Session(self._database) as session:
            return list(session.scalars(sa.select(RoundRow).where(RoundRow.job == job).order_by(RoundRow.round)))

    def register(self, address: str, registration: NodeRegistration) -> None:
        """Remember a node and that it was heard of now."""
        row = NodeRow(address=address, registration=registration.model_dump(mode="json"), seen_at=time.time())
        with Session(self._database) as session, session.begin():
            session.merge(row)

    def nodes(self) -> list[NodeRow]:
        """All nodes by address."""
        with Session(self._database) as session:
            return list(session.scalars(sa.select(NodeRow).order_by(NodeRow.address)))

    def presence(self, seconds: float) -> dict[str, int]:
        """How many nodes were heard of in the last `seconds` ('live'), and how many were not ('silent')."""
        since = time.time() - seconds
        with Session(self._database) as session:
            seen = list(session.scalars(sa.select(NodeRow.seen_at)))
        live = sum(moment >= since for moment in seen)
        return {"live": live, "silent": len(seen) - live}

    def report(self, hospital: str, report: EvaluationReport) -> None:
        """Remember a site's evaluation; the last one counts."""
        row = ReportRow(job=report.job, round=report.round, hospital=hospital, report=report.model_dump(mode="json"))
        with Session(self._database) as session, session.begin():
            session.merge(row)

    def reports(self, job: str) -> dict[int, dict[str, EvaluationReport]]:
        """A job's evaluations by round and hospital, hospitals in order of address."""
        query = sa.select(ReportRow).where(ReportRow.job == job).order_by(ReportRow.round, ReportRow.hospital)
        result: dict[int, dict[str, EvaluationReport]] = {}
        with Session(self._database) as session:
            for row in session.scalars(query):
                result.setdefault(row.round, {})[row.hospital] = EvaluationReport.model_validate(row.report)
        return result

    def progress(self, job: str, round_: int, hospital: str, progress: Progress) -> None:
        """Remember what a node last said it was doing. Raises `JobNotFound`."""
        self.job(job)
        row = ProgressRow(job=job, round=round_, hospital=hospital, progress=progress.model_dump(mode="json"))
        with Session(self._database) as session, session.begin():
            session.merge(row)

    def progresses(self, job: str) -> dict[int, dict[str, Progress]]:
        """A job's last progress by round and hospital."""
        result: dict[int, dict[str, Progress]] = {}
        with Session(self._database) as session:
            for row in session.scalars(sa.select(ProgressRow).where(ProgressRow.job == job)):
                result.setdefault(row.round, {})[row.hospital] = Progress.model_validate(row.progress)
        return result


def state_of(row: JobRow) -> JobState:
    """The state in a row."""
    data = dict(row.state)
    return JobState(**{**data, "phase": Phase(data["phase"]), "cohort": frozenset(data["cohort"])})


def moment(seconds: float | None) -> datetime | None:
    """Unix seconds as an aware time in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def spec_of(row: JobRow) -> JobSpec:
    """What was asked for."""
    return JobSpec.model_validate(row.spec)


def _dump(state: JobState) -> dict[str, Any]:
    return {**asdict(state), "phase": state.phase.value, "cohort": sorted(state.cohort)}

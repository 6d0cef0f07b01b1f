"""What the aggregator remembers, in SQL: jobs, rounds, nodes, evaluations, progress, and tasks still to be sent.

A change of a job's state and the tasks that follow from it are committed together (outbox); a second writer of the same
state is refused by its version.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.database import reading
from concilia_kit.together import Together
from concilia_kit.wire.encoding import PLAIN_ONLY
from concilia_kit.wire.jobs import JobManifest, JobSpec, Phase
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.training import EvaluationReport
from sqlalchemy.dialects import postgresql, sqlite

from concilia_aggregator import scores, tables
from concilia_aggregator.errors import JobNotFound, RoundNotFound
from concilia_aggregator.masking.rooms import Rooms
from concilia_aggregator.noisekeys import NoiseKeys
from concilia_aggregator.rounds import TERMINAL, JobState
from concilia_aggregator.tables import JobRow, NodeRow, OutboxRow, RoundRow

_TOGETHER = 1000
"""Values in one query."""

_jobs, _rounds, _nodes, _reports = tables.jobs, tables.rounds, tables.nodes, tables.reports
_classification = _nodes.c.registration["classification"]  # left out where it is `LESIONS`


class StaleState(Exception):
    """Somebody else changed the job meanwhile; read it again."""


class KeyTaken(Exception):
    """There is a job of that creator with that idempotency key."""


class Store:
    """All reads and writes; each method is one transaction. `masking`: those of secure rounds' rooms; `noise`: of the
    keys of noise."""

    def __init__(self, database: sa.Engine) -> None:
        self.masking = Rooms(database)
        self.noise = NoiseKeys(database)
        self._database = database
        self._reading = reading(database)
        self._known: set[str] = set()  # jobs; none is ever deleted
        self._nodes = Together(partial(self._put, tables.nodes), "nodes")
        self._reports = Together(partial(self._put, tables.reports), "reports")
        self._progress = Together(partial(self._put, tables.progress), "progress")

    def add_job(
        self,
        job: str,
        spec: JobSpec,
        state: JobState,
        creator: str,
        manifest: JobManifest | None = None,
        key: str | None = None,
    ) -> None:
        """Remember a new job, as created when its manifest says. Raises `KeyTaken` where the creator gave another job
        that key."""
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
            idempotency_key=key,
        )
        first = RoundRow(job=job, round=0, model=spec.initial, opened_at=time.time())
        try:
            with self._database.begin() as connection:
                connection.execute(sa.insert(tables.jobs), asdict(row))
                connection.execute(sa.insert(tables.rounds), asdict(first))
        except sa.exc.IntegrityError as error:
            if key is None or self.created(creator, key) is None:
                raise
            raise KeyTaken(key) from error

    def created(self, creator: str, key: str) -> JobRow | None:
        """The job that a creator gave that key."""
        query = sa.select(_jobs).where(_jobs.c.created_by == creator, _jobs.c.idempotency_key == key)
        with self._reading.begin() as connection:
            return tables.row(connection, query, JobRow)

    def jobs(self) -> list[JobRow]:
        """All jobs, newest first."""
        query = sa.select(_jobs).order_by(_jobs.c.created_at.desc())
        with self._reading.begin() as connection:
            return tables.rows(connection, query, JobRow)

    def phases(self) -> dict[str, int]:
        """How many jobs are in each phase, those in which none is included."""
        query = sa.select(_jobs.c.phase, sa.func.count()).group_by(_jobs.c.phase)
        with self._reading.begin() as connection:
            counted = connection.execute(query).all()
        return {phase.value: 0 for phase in Phase} | {row[0]: row[1] for row in counted}

    def active(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        ended = [phase.value for phase in TERMINAL]
        with self._reading.begin() as connection:
            return list(connection.execute(sa.select(_jobs.c.id).where(_jobs.c.phase.not_in(ended))).scalars())

    def job(self, job: str) -> JobRow:
        """One job. Raises `JobNotFound`."""
        with self._reading.begin() as connection:
            row = tables.row(connection, sa.select(_jobs).where(_jobs.c.id == job), JobRow)
        if row is None:
            raise JobNotFound(f"there is no job {job[:12]}…")
        return row

    def version(self, job: str) -> int:
        """How often a job's state was saved. Raises `JobNotFound`."""
        with self._reading.begin() as connection:
            found = connection.execute(sa.select(_jobs.c.version).where(_jobs.c.id == job)).scalar()
        if found is None:
            raise JobNotFound(f"there is no job {job[:12]}…")
        return int(found)

    def versions(self) -> dict[str, int]:
        """How often the state of each job was saved that has not ended."""
        query = sa.select(_jobs.c.id, _jobs.c.version).where(_jobs.c.phase.not_in([phase.value for phase in TERMINAL]))
        with self._reading.begin() as connection:
            return {row.id: row.version for row in connection.execute(query)}

    def require(self, job: str) -> None:
        """See to it that there is such a job. Raises `JobNotFound`."""
        if job not in self._known:
            self.version(job)
            self._known.add(job)

    def save(
        self, row: JobRow, state: JobState, *, tasks: Sequence[OutboxRow] = (), round_: RoundRow | None = None
    ) -> None:
        """Move a job from the state it was read with to `state`, with the tasks and the round that go with it.

        Raises `StaleState` where the job changed since `row` was read.
        """
        with self._database.begin() as connection:
            changed = connection.execute(
                sa.update(_jobs)
                .where(_jobs.c.id == row.id, _jobs.c.version == row.version)
                .values(state=_dump(state), phase=state.phase.value, version=row.version + 1)
            )
            if changed.rowcount != 1:
                raise StaleState(row.id)
            if tasks:
                new = [
                    {"job": each.job, "hospital": each.hospital, "name": each.name, "task": each.task} for each in tasks
                ]
                connection.execute(sa.insert(tables.outbox), new)
            if round_ is not None:
                self._upsert(connection, tables.rounds, [asdict(round_)])

    def unsent(self, job: str, limit: int) -> list[OutboxRow]:
        """Tasks of a job still to be handed to the broker, the oldest so many."""
        outbox = tables.outbox
        query = sa.select(outbox).where(outbox.c.job == job).order_by(outbox.c.id).limit(limit)
        with self._reading.begin() as connection:
            return tables.rows(connection, query, OutboxRow)

    def sent(self, rows: Sequence[OutboxRow]) -> None:
        """The broker has the tasks."""
        with self._database.begin() as connection:
            connection.execute(sa.delete(tables.outbox).where(tables.outbox.c.id.in_([row.id for row in rows])))

    def round(self, job: str, round_: int) -> RoundRow | None:
        """One round of a job."""
        query = sa.select(_rounds).where(_rounds.c.job == job, _rounds.c.round == round_)
        with self._reading.begin() as connection:
            return tables.row(connection, query, RoundRow)

    def model(self, job: str, round_: int) -> str | None:
        """The digest of a round's global model, None while there is none. Raises `RoundNotFound`.

        Asked with every evaluation: a closed round's summary, which grows with the hospitals, is not read for it.
        """
        query = sa.select(_rounds.c.model).where(_rounds.c.job == job, _rounds.c.round == round_)
        with self._reading.begin() as connection:
            found = connection.execute(query).first()
        if found is None:
            raise RoundNotFound(f"the job has no round {round_}")
        return None if found[0] is None else str(found[0])

    def rounds(self, job: str) -> list[RoundRow]:
        """A job's rounds in order, round 0 first."""
        query = sa.select(_rounds).where(_rounds.c.job == job).order_by(_rounds.c.round)
        with self._reading.begin() as connection:
            return tables.rows(connection, query, RoundRow)

    def register(self, address: str, registration: NodeRegistration) -> None:
        """Remember a node and that it was heard of now."""
        row = {"address": address, "registration": registration.model_dump(mode="json"), "seen_at": time.time()}
        self._nodes.put(row).result()

    def heard(self, seconds: float, classification: Classification = LESIONS) -> frozenset[str]:
        """The nodes with pictures of a classification that were heard of in the last `seconds`."""
        heard, named = _nodes.c.seen_at >= time.time() - seconds, _classification.as_string().is_not(None)
        with self._reading.begin() as connection:
            if classification == LESIONS:
                return frozenset(connection.execute(sa.select(_nodes.c.address).where(heard, ~named)).scalars())
            wanted = classification.model_dump(mode="json")
            rows = connection.execute(sa.select(_nodes.c.address, _classification).where(heard, named))
            return frozenset(address for address, found in rows if found == wanted)

    def is_of(self, address: str, classification: Classification) -> bool:
        """Whether a node has pictures of a classification; of one that said nothing yet, that they are lesions."""
        with self._reading.begin() as connection:
            found = connection.execute(sa.select(_classification).where(_nodes.c.address == address)).scalar()
        return classification == (LESIONS if found is None else Classification.model_validate(found))

    def nodes(self) -> list[NodeRow]:
        """All nodes by address."""
        with self._reading.begin() as connection:
            return tables.rows(connection, sa.select(_nodes).order_by(_nodes.c.address), NodeRow)

    def abilities(self) -> dict[str, frozenset[str]]:
        """What encodings nodes can, by address; of one that registered before there were any, that it can none."""
        return {node.address: frozenset(node.registration.get("encodings", PLAIN_ONLY)) for node in self.nodes()}

    def ability(self, address: str) -> frozenset[str]:
        """What encodings one node can, as `abilities`."""
        with self._reading.begin() as connection:
            found = connection.execute(sa.select(_nodes.c.registration).where(_nodes.c.address == address)).scalar()
        return frozenset((found or {}).get("encodings", PLAIN_ONLY))

    def training_images(self, addresses: Sequence[str]) -> dict[str, int]:
        """How many images to train on some nodes registered, by address; of those that did."""
        found: dict[str, int] = {}
        with self._reading.begin() as connection:
            for at in range(0, len(addresses), _TOGETHER):
                those = _nodes.c.address.in_(addresses[at : at + _TOGETHER])
                rows = connection.execute(sa.select(_nodes.c.address, _nodes.c.registration).where(those))
                found |= {address: sum(registration["training_images"]) for address, registration in rows}
        return found

    def presence(self, seconds: float) -> dict[str, int]:
        """How many nodes were heard of in the last `seconds` ('live'), and how many were not ('silent')."""
        since = time.time() - seconds
        with self._reading.begin() as connection:
            seen = list(connection.execute(sa.select(_nodes.c.seen_at)).scalars())
        live = sum(moment >= since for moment in seen)
        return {"live": live, "silent": len(seen) - live}

    def report(self, hospital: str, report: EvaluationReport) -> None:
        """Remember a site's evaluation; the last one counts."""
        place = {"job": report.job, "round": report.round, "hospital": hospital}
        self._reports.put({**place, "report": report.model_dump(mode="json")}).result()

    def reported(self, job: str, round_: int) -> int:
        """How many sites' evaluations of a round's model are there."""
        query = sa.select(sa.func.count()).where(_reports.c.job == job, _reports.c.round == round_)
        with self._reading.begin() as connection:
            return int(connection.execute(query).scalar_one())

    def has_reported(self, job: str, round_: int, hospital: str) -> bool:
        """Whether a site's evaluation of a round's model is there."""
        place = sa.and_(_reports.c.job == job, _reports.c.round == round_, _reports.c.hospital == hospital)
        with self._reading.begin() as connection:
            return bool(connection.scalar(sa.select(sa.exists(sa.select(_reports.c.job).where(place)))))

    def reports(self, job: str, round_: int | None = None) -> dict[int, dict[str, EvaluationReport]]:
        """A job's evaluations, or those of one round, by round and hospital, hospitals in order of address."""
        query = sa.select(_reports).where(_reports.c.job == job).order_by(_reports.c.round, _reports.c.hospital)
        if round_ is not None:
            query = query.where(_reports.c.round == round_)
        result: dict[int, dict[str, EvaluationReport]] = {}
        with self._reading.begin() as connection:
            for row in connection.execute(query):
                result.setdefault(row.round, {})[row.hospital] = EvaluationReport.model_validate(row.report)
        return result

    def class_counts(self, job: str, spec: JobSpec) -> tuple[int, ...] | None:
        """Pictures by class on which hospitals evaluated the initial model, where a job's answers go by them."""
        if not spec.own_shares:
            return None
        return scores.class_counts(list(self.reports(job, 0).get(0, {}).values()))

    def progress(self, job: str, round_: int, hospital: str, progress: Progress) -> None:
        """Remember what a node last said it was doing. Raises `JobNotFound`."""
        self.require(job)
        place = {"job": job, "round": round_, "hospital": hospital}
        self._progress.put({**place, "progress": progress.model_dump(mode="json")}).result()

    def progresses(self, job: str) -> dict[int, dict[str, Progress]]:
        """A job's last progress by round and hospital."""
        result: dict[int, dict[str, Progress]] = {}
        query = sa.select(tables.progress).where(tables.progress.c.job == job)
        with self._reading.begin() as connection:
            for row in connection.execute(query):
                result.setdefault(row.round, {})[row.hospital] = Progress.model_validate(row.progress)
        return result

    def _put(self, table: sa.Table, rows: Sequence[dict[str, Any]]) -> list[None]:
        with self._database.begin() as connection:
            self._upsert(connection, table, rows)
        return [None] * len(rows)

    def _upsert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, or replace those of the same key; the last one counts."""
        insert = postgresql.insert if self._database.dialect.name == "postgresql" else sqlite.insert
        keys = [column.name for column in table.primary_key]
        asked = insert(table)
        others = {column.name: asked.excluded[column.name] for column in table.columns if column.name not in keys}
        connection.execute(asked.on_conflict_do_update(index_elements=keys, set_=others), rows)


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

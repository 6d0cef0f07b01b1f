"""Jobs as people ask for them and nodes report on them: what the API does, without what only the worker needs.

What a person can see changed is told once it is committed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from concilia_kit import logs
from concilia_kit.wire.changes import Change, EvaluationChange, JobChange, ProgressChange, RoundChange
from concilia_kit.wire.jobs import JobManifest, JobSpec
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.training import EvaluationReport

from concilia_aggregator import rounds, strategies
from concilia_aggregator.artifacts import Artifacts
from concilia_aggregator.changes import Tell, nobody
from concilia_aggregator.errors import InitialMissing, JobEnded, KeyReused, ReportMismatch, StrategyMissing
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import KeyTaken, StaleState, Store, spec_of, state_of
from concilia_aggregator.tables import JobRow, OutboxRow, RoundRow

_log = logs.get(__name__)


class Jobs:
    """Creates jobs, and takes what is asked of them and told about them. `code` is this code's name and version."""

    def __init__(self, store: Store, artifacts: Artifacts, code: str, tell: Tell = nobody) -> None:
        self._store = store
        self._artifacts = artifacts
        self._code = code
        self._tell = tell

    def create(self, spec: JobSpec, creator: str, key: str | None = None) -> str:
        """Start a job; returns its id, which is its manifest's. With the key of a job that the creator started before,
        that one's. Raises `StrategyMissing`, `InitialMissing`, and `KeyReused` where that one is
        another.

        Source of keys: draft-ietf-httpapi-idempotency-key-header-07.
        """
        if key is not None and (before := self._store.created(creator, key)) is not None:
            return _same(before, spec)
        try:
            strategies.make(spec.strategy)
        except strategies.StrategyUnknown as error:
            raise StrategyMissing(str(error)) from error
        if not self._artifacts.exists(spec.initial):
            raise InitialMissing(
                f"no artifact {spec.initial[:12]}…, or not the trunk that it is an adapter over: "
                "upload the initial weights first"
            )
        manifest = JobManifest(
            spec=spec.model_dump(mode="json"),
            created_by=creator,
            created_at=datetime.now(UTC).isoformat(),
            code=self._code,
            salt=secrets.token_hex(16),
        )
        job = manifest.id()
        try:
            self._store.add_job(job, spec, rounds.begin(spec.initial), creator, manifest, key)
        except KeyTaken:  # the same request, twice at one moment
            return self.create(spec, creator, key)
        _log.info("job created", job=job, architecture=str(spec.architecture), rounds=spec.rounds, code=self._code)
        return job

    def stop(self, job: str) -> None:
        """Ask a job to stop. Raises `JobNotFound`, `JobEnded`."""
        self._change(job, lambda state: replace(state, stopping=True))

    def pause(self, job: str) -> None:
        """Have a job end its open round and open no other. Raises `JobNotFound`, `JobEnded`."""
        self._change(job, rounds.pause)

    def resume(self, job: str) -> None:
        """Have a paused job go on. Raises `JobNotFound`, `JobEnded`."""
        self._change(job, rounds.resume)

    def progress(self, job: str, round_: int, hospital: str, progress: Progress) -> None:
        """Take what a node says it is doing. Raises `JobNotFound`."""
        self._store.progress(job, round_, hospital, progress)
        self._tell(job, Change.PROGRESS, ProgressChange(round=round_, hospital=hospital, progress=progress))

    def report(self, hospital: str, report: EvaluationReport) -> None:
        """Take a site's evaluation. Raises `JobNotFound`, `RoundNotFound`, `ReportMismatch`."""
        row = self._store.job(report.job)
        if self._store.model(report.job, report.round) != report.model:
            raise ReportMismatch("the round's model is another one than was evaluated")
        if len(report.confusion) != (classes := len(spec_of(row).classification.classes)):
            raise ReportMismatch(f"the job tells {classes} classes apart, the report {len(report.confusion)}")
        if report.calibration is not None:
            which = spec_of(row).classification.critical_index
            if report.calibration.critical != (None if which is None else sum(report.confusion[which])):
                raise ReportMismatch("the calibration has other images of the critical class than the confusion matrix")
        self._store.report(hospital, report)
        self._tell(report.job, Change.EVALUATION, EvaluationChange(round=report.round, hospital=hospital))

    def _change(self, job: str, change: Callable[[JobState], JobState]) -> None:
        """Change a job's state on request, whoever else changes it meanwhile."""
        while True:
            row = self._store.job(job)
            state = state_of(row)
            if state.phase in rounds.TERMINAL:
                raise JobEnded(f"the job is {state.phase} already")
            changed = change(state)
            if changed == state:
                return None
            try:
                return self._save(row, changed)
            except StaleState:
                continue

    def _save(
        self, row: JobRow, state: JobState, *, tasks: Sequence[OutboxRow] = (), round_: RoundRow | None = None
    ) -> None:
        """Save a state and what goes with it, then tell what a person can see of it. Raises `StaleState`."""
        before = _shown(state_of(row))
        self._store.save(row, state, tasks=tasks, round_=round_)
        if round_ is not None:
            self._tell(row.id, Change.ROUND, RoundChange(round=round_.round))
        if (after := _shown(state)) != before:
            self._tell(row.id, Change.JOB, after)


def _same(before: JobRow, spec: JobSpec) -> str:
    if spec_of(before) != spec:
        raise KeyReused("another job was created with this idempotency key; take a new one")
    return before.id


def _shown(state: JobState) -> JobChange:
    return JobChange(phase=state.phase, round=state.round, detail=state.detail, paused=state.paused)

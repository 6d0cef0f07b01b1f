"""Where a job's decided moves become real: on the chain, in the artifact store, in the nodes' queues.

Every effect may be repeated after a crash: openings and closures are recognised by the chain service, artifacts by
their digest, tasks by the nodes. What a person can see changed is told once it is committed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from concilia_kit import logs
from concilia_kit.digests import Contribution, of_contributions
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import LedgerRound, Publication, RoundClosure, RoundOpening, RoundStatus
from concilia_kit.wire.jobs import (
    Change,
    EvaluationChange,
    JobChange,
    JobManifest,
    JobSpec,
    Phase,
    ProgressChange,
    Recording,
    RoundChange,
)
from concilia_kit.wire.models import ModelRegistration
from concilia_kit.wire.training import EVALUATE_TASK, TRAIN_TASK, EvaluateTask, EvaluationReport, Progress, TrainTask

from concilia_aggregator import rounds, scores, strategies
from concilia_aggregator.artifacts import Artifacts
from concilia_aggregator.changes import Tell, nobody
from concilia_aggregator.errors import InitialMissing, JobEnded, ReportMismatch, RoundNotFound
from concilia_aggregator.folder import Folder
from concilia_aggregator.ledger import Ledger
from concilia_aggregator.metrics import ABORTED, CHAIN, EVALUATING, FOLDING, MOVING, TRAINING, RoundMetrics
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import JobRow, OutboxRow, RoundRow, StaleState, Store, spec_of, state_of

Send = Callable[[str, str, dict[str, object]], None]
"""Hands a task to the broker: queue's hospital address, task name, task."""

_log = logs.get(__name__)


class Coordinator:
    """Creates jobs and moves them on."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        artifacts: Artifacts,
        folder: Folder,
        send: Send,
        node_seconds: float,
        code: str,
        metrics: RoundMetrics | None = None,
        tell: Tell = nobody,
    ) -> None:
        self._tell = tell
        self._store = store
        self._ledger = ledger
        self._artifacts = artifacts
        self._folder = folder
        self._send = send
        self._node_seconds = node_seconds
        self._code = code
        self._metrics = metrics or RoundMetrics()

    def create(self, spec: JobSpec, creator: str) -> str:
        """Start a job; returns its id, which is its manifest's. Raises `InitialMissing`."""
        if not self._artifacts.exists(spec.initial):
            raise InitialMissing(f"no artifact {spec.initial[:12]}…: upload the initial weights first")
        manifest = JobManifest(
            spec=spec.model_dump(mode="json"),
            created_by=creator,
            created_at=datetime.now(UTC).isoformat(),
            code=self._code,
            salt=secrets.token_hex(16),
        )
        job = manifest.id()
        self._store.add_job(job, spec, rounds.begin(spec.initial), creator, manifest)
        _log.info("job created", job=job, architecture=spec.architecture.value, rounds=spec.rounds, code=self._code)
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
        self._store.job(report.job)
        round_ = next((row for row in self._store.rounds(report.job) if row.round == report.round), None)
        if round_ is None:
            raise RoundNotFound(f"the job has no round {report.round}")
        if round_.model != report.model:
            raise ReportMismatch("the round's model is another one than was evaluated")
        self._store.report(hospital, report)
        self._tell(report.job, Change.EVALUATION, EvaluationChange(round=report.round, hospital=hospital))

    def advance(self, job: str) -> None:
        """Make every move that can be made now. Raises `Problem` where something it needs does not answer."""
        while True:
            row = self._store.job(job)
            self._dispatch(job)
            state = state_of(row)
            if state.phase in rounds.TERMINAL:
                return
            move = rounds.decide(spec_of(row), state, self._facts(row, state))
            try:
                if not self._make(row, state, move):
                    return
            except StaleState:
                _log.info("job changed meanwhile, reading it again", job=job)

    def _facts(self, row: JobRow, state: JobState) -> rounds.Facts:
        now = time.time()
        live: frozenset[str] = frozenset()
        members: frozenset[str] = frozenset()
        if state.phase in {Phase.BASELINE, Phase.OPENING, Phase.EVALUATING, Phase.TRAINING}:
            heard = {node.address for node in self._store.nodes() if now - node.seen_at <= self._node_seconds}
            members = self._ledger.hospitals()
            live = members & heard
        ledger = None
        if state.phase in {Phase.OPENING, Phase.TRAINING} or state.stopping:
            recorded = self._ledger.round(row.id, state.round) if state.round else None
            ledger = _round_facts(recorded, members) if recorded else None
        reports: list[EvaluationReport] = []
        evaluated: frozenset[str] = frozenset()
        if state.phase in {Phase.BASELINE, Phase.EVALUATING}:
            by_hospital = self._store.reports(row.id).get(state.round if state.closed else 0, {})
            reports, evaluated = list(by_hospital.values()), frozenset(by_hospital)
        pooled = scores.pooled(reports)
        return rounds.Facts(now, live, ledger, evaluated, pooled.balanced_accuracy if pooled else None)

    def _make(self, row: JobRow, state: JobState, move: rounds.Move) -> bool:
        """Make one move; False where there is nothing to do but wait."""
        spec = spec_of(row)
        match move:
            case rounds.Wait(reason):
                if reason != state.detail:
                    self._save(row, replace(state, detail=reason))
                return False
            case rounds.Enter(new):
                self._save(row, new)
                self._entered(row.id, state, new)
            case rounds.AskEvaluations(new):
                self._save(row, new, tasks=_evaluations(row.id, spec, new))
            case rounds.OpenRound(new):
                self._open(row, spec, new)
            case rounds.Commit():
                self._ledger.commit(row.id, state.round)
                shown = self._ledger.round(row.id, state.round)
                if shown is None or shown.root is None:
                    return False  # the chain service's reading is behind its writing: the event wakes the job
            case rounds.Fold():
                self._fold(row, spec, state)
            case rounds.AbortRound(new):
                self._ledger.abort(row.id, state.round)
                self._save(row, new)
                self._metrics.rounds.labels(ABORTED).inc()
            case rounds.Publish(new):
                self._ledger.publish(Publication(job=row.id, digest=new.head))
                self._artifacts.register(
                    ModelRegistration(
                        job=row.id,
                        digest=new.head,
                        architecture=spec.architecture,
                        image_size=spec.local.image_size,
                    )
                )
                self._save(row, new)
        _log.info("job moved", job=row.id, move=type(move).__name__, round=state.round)
        return True

    def _open(self, row: JobRow, spec: JobSpec, new: JobState) -> None:
        deadline = rounds.state_deadline(new)
        self._ledger.open(
            RoundOpening(
                job=row.id,
                round=new.round,
                base=new.head,
                deadline=deadline,
                quorum=spec.quorum,
                merkle=spec.recording is Recording.MERKLE,
            )
        )
        opened = RoundRow(
            job=row.id, round=new.round, base=new.head, deadline=deadline, opened_at=time.time(), summary={}
        )
        self._save(row, new, tasks=_trainings(row.id, spec, new), round_=opened)

    def _fold(self, row: JobRow, spec: JobSpec, state: JobState) -> None:
        recorded = self._ledger.round(row.id, state.round)
        if recorded is None:
            raise RoundNotFound(f"the ledger has no round {state.round} of this job")
        started, size = time.monotonic(), 0
        if recorded.status is RoundStatus.OPEN:
            recorded = self._folder.screen(recorded, self._registered())
            if len(recorded.accepted()) < spec.quorum:
                return self._save(row, replace(state, phase=Phase.TRAINING))
            digest = self._folder.fold(recorded, spec)
            size = self._folder.size(recorded)
            accepted = [
                Contribution(item.update.hospital, item.update.digest, item.update.samples)
                for item in recorded.accepted()
            ]
            closure = RoundClosure(global_digest=digest, contributions=of_contributions(accepted), count=len(accepted))
            try:
                self._ledger.close(row.id, state.round, closure)
            except Problem as problem:
                if problem.problem_code != "contribution_count_mismatch":
                    raise
                # An update was confirmed while the others were folded: fold again, with it.
                return self._save(row, state)
        elif recorded.global_digest is None:
            self._save(row, rounds.after_abort(state, "the round was aborted on the ledger"))
            return self._metrics.rounds.labels(ABORTED).inc()
        else:
            digest = recorded.global_digest
        seconds = _seconds(recorded, self._ledger) | {FOLDING: time.monotonic() - started}
        closed = RoundRow(
            job=row.id,
            round=state.round,
            base=state.head,
            model=digest,
            deadline=recorded.deadline,
            opened_at=next(item.opened_at for item in self._store.rounds(row.id) if item.round == state.round),
            closed_at=time.time(),
            summary=_summary(recorded, seconds),
        )
        self._save(row, rounds.after_close(state, digest), round_=closed)
        self._metrics.closed(len(recorded.accepted()), size, seconds)
        self._folder.release(recorded)
        return None

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

    def _entered(self, job: str, state: JobState, new: JobState) -> None:
        """Measure what ended with a change of state: a round given up elsewhere, an evaluation."""
        if new.aborted > state.aborted:
            self._metrics.rounds.labels(ABORTED).inc()
        if state.phase is Phase.EVALUATING and new.phase in {Phase.OPENING, Phase.PUBLISHING}:
            closed_at = next(item.closed_at for item in self._store.rounds(job) if item.round == state.round)
            self._metrics.seconds.labels(EVALUATING).observe(time.time() - (closed_at or time.time()))

    def _registered(self) -> dict[str, int]:
        return {node.address: sum(node.registration["training_images"]) for node in self._store.nodes()}

    def _dispatch(self, job: str) -> None:
        for task in self._store.unsent(job):
            self._send(task.hospital, task.name, task.task)
            self._store.sent(task)


def _shown(state: JobState) -> JobChange:
    return JobChange(phase=state.phase, round=state.round, detail=state.detail, paused=state.paused)


def _round_facts(recorded: LedgerRound, members: frozenset[str]) -> rounds.RoundFacts:
    """What the state machine needs of a round; who lost its role since its update was collected is not committed."""
    is_collecting = recorded.merkle and recorded.root is None
    return rounds.RoundFacts(
        status=recorded.status,
        base=recorded.base,
        deadline=recorded.deadline,
        recorded=frozenset(
            recorded.collected if is_collecting else (item.update.hospital for item in recorded.updates)
        ),
        accepted=len(members & set(recorded.collected) if is_collecting else recorded.accepted()),
        global_digest=recorded.global_digest,
        merkle=recorded.merkle,
        committed=recorded.root is not None,
    )


def _trainings(job: str, spec: JobSpec, state: JobState) -> list[OutboxRow]:
    task = TrainTask(
        job=job,
        round=state.round,
        architecture=spec.architecture,
        base=state.head,
        seed=spec.seed,
        deadline=rounds.state_deadline(state),
        local=strategies.make(spec.strategy).local(spec.local),
    ).model_dump(mode="json")
    return [OutboxRow(job=job, hospital=address, name=TRAIN_TASK, task=task) for address in sorted(state.cohort)]


def _evaluations(job: str, spec: JobSpec, state: JobState) -> list[OutboxRow]:
    task = EvaluateTask(
        job=job,
        round=state.round if state.closed else 0,
        architecture=spec.architecture,
        model=state.head,
        seed=spec.seed,
        image_size=spec.local.image_size,
        evaluation=spec.evaluation,
    ).model_dump(mode="json")
    return [OutboxRow(job=job, hospital=address, name=EVALUATE_TASK, task=task) for address in sorted(state.cohort)]


def _seconds(recorded: LedgerRound, ledger: Ledger) -> dict[str, float]:
    """Seconds by phase, as nodes and chain service measured them.

    Of a transaction that carried several orders the longest latency counts, once: what the one that came first waited.
    """
    latencies: dict[str, float] = {}
    for item in ledger.transactions(recorded.job):
        if item.round == recorded.round:
            latencies[item.transaction] = max(item.latency, latencies.get(item.transaction, 0.0))
    metrics = [item.metrics for item in recorded.updates if item.metrics is not None]
    return {
        TRAINING: max((item.seconds_training for item in metrics), default=0.0),
        MOVING: sum(item.seconds_download + item.seconds_upload for item in metrics),
        CHAIN: sum(latencies.values()),
    }


def _summary(recorded: LedgerRound, seconds: dict[str, float]) -> dict[str, object]:
    metrics = [item.metrics for item in recorded.updates if item.metrics is not None]
    return {
        **{f"seconds_{phase}": spent for phase, spent in seconds.items()},
        "accepted": [item.update.hospital for item in recorded.accepted()],
        "rejected": [
            {"hospital": item.update.hospital, "digest": item.update.digest, "reason": item.reason.name.lower()}
            for item in recorded.updates
            if item.reason is not None
        ],
        "bytes_moved": sum(item.bytes_download + item.bytes_upload for item in metrics),
    }

"""Where a job's decided moves become real: on the chain, in the artifact store, in the nodes' queues.

Every effect may be repeated after a crash: openings and closures are recognised by the chain service, artifacts by
their digest, tasks by the nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from concilia_kit import judging, logs
from concilia_kit.digests import Contribution, of_contributions
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import LedgerRound, RoundClosure, RoundOpening, RoundStanding, RoundStatus
from concilia_kit.wire.jobs import JobSpec, Phase, Recording
from concilia_kit.wire.masking import Stage
from concilia_kit.wire.training import EvaluationReport
from pydantic import JsonValue

from concilia_aggregator import dispatch, facts, ledger_facts, rounds, scores, summary
from concilia_aggregator.artifacts import Artifacts
from concilia_aggregator.changes import Tell, nobody
from concilia_aggregator.errors import RoundNotFound
from concilia_aggregator.folder import Folder
from concilia_aggregator.jobs import Jobs
from concilia_aggregator.ledger import Ledger
from concilia_aggregator.masking import moves, rules
from concilia_aggregator.masking.moves import Masking
from concilia_aggregator.metrics import ABORTED, EVALUATING, FOLDING, RoundMetrics
from concilia_aggregator.publishing import publish
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import StaleState, Store, spec_of, state_of
from concilia_aggregator.tables import JobRow, RoundRow

Send = Callable[[str, str, dict[str, JsonValue]], None]
"""Hands a task to the broker: queue's hospital address, task name, task."""

_log = logs.get(__name__)

_SCREENED_A_LOOK = 4
"""Updates that are screened before other jobs have a turn; a large one takes a fraction of a second."""
_SENT_TOGETHER = 500
_HEAD_SECONDS = 5.0  # between two looks whether hospitals can fetch what they are to train
_HEAD_NEEDED = frozenset({Phase.BASELINE, Phase.TRAINING, Phase.EVALUATING})
_SAID_SECONDS = 0.1
"""Between two sayings of how far a wait is, for each ten hospitals."""


@dataclass
class _Look:
    """What one look at a job has seen of the ledger and of a secure round's room, and whether another is worth while at
    once."""

    seen: moves.Seen = moves.NOTHING
    standing: RoundStanding | None = None
    recorded: LedgerRound | None = None
    more: bool = False


class Coordinator(Jobs):
    """Moves jobs on."""

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
        super().__init__(store, artifacts, code, tell)
        self._ledger = ledger
        self._folder = folder
        self._masking = Masking(store.masking)
        self._send = send
        self._node_seconds = node_seconds
        self._metrics = metrics or RoundMetrics()
        self._kept: dict[str, tuple[JobRow, JobSpec, JobState]] = {}
        self._screened: dict[tuple[str, int], int] = {}
        self._said_at = float("-inf")
        self._seen_to: dict[str, float] = {}

    def advance(self, job: str) -> bool:
        """Make every move that can be made now; whether there is more to do at once, after others had their turn.

        Raises `Problem` where something it needs does not answer.
        """
        self._dispatch(job)
        look = _Look()
        while True:
            row, spec, state = self._read(job)
            if state.phase in rounds.TERMINAL:
                return False
            try:
                move = self._early(row, spec, state, look) or rounds.decide(
                    spec, state, self._facts(row, spec, state, look)
                )
                if not self._make(row, spec, state, move, look):
                    return look.more
            except StaleState:
                _log.info("job changed meanwhile, reading it again", job=job)

    def _read(self, job: str) -> tuple[JobRow, JobSpec, JobState]:
        """A job as stored; read again only where it was saved since. Raises `JobNotFound`."""
        version = self._store.version(job)
        kept = self._kept.get(job)
        if kept is None or kept[0].version != version:
            row = self._store.job(job)
            kept = row, spec_of(row), state_of(row)
            self._kept = {job: kept}  # of the job that is moved now
        return kept

    def _early(self, row: JobRow, spec: JobSpec, state: JobState, look: _Look) -> rounds.Move | None:
        """To wait, where so much can be said without looking at every hospital; what came so far is screened then."""
        now = time.time()
        if state.phase in _HEAD_NEEDED and state.deadline is not None:
            self._see_to_head(row, spec, state)
        look.seen = self._masking.look(row.id, spec, state, now)
        room = look.seen.room
        if state.phase is Phase.TRAINING and not state.stopping:
            look.standing = shown = self._ledger.standing(row.id, state.round)
            if shown is not None and (wait := rounds.early(spec, state, shown, now, room)) is not None:
                self._screen_early(row, spec, state, look)
                return wait
        elif state.phase is Phase.UNMASKING and room is not None and room.stage not in rules.ENDED:
            self._reject_others(row, spec, state, look)
        elif state.phase in {Phase.BASELINE, Phase.EVALUATING} and state.deadline is not None:
            reported = self._store.reported(row.id, state.round if state.closed else 0)
            return rounds.early_evaluation(spec, state, reported, now)
        return None

    def _screen_early(self, row: JobRow, spec: JobSpec, state: JobState, look: _Look) -> None:
        """Screen what was recorded while others still train: some updates a look, so that other jobs have theirs.

        How far it is, is not kept: after a start what was screened is screened once more, to the same end.
        """
        shown = look.standing
        if shown is None or (shown.merkle and not shown.committed):
            return
        job, place = row.id, (row.id, state.round)
        screened = self._screened.get(place, 0)
        if shown.updates <= screened:
            return
        try:
            recorded = self._ledger.round(job, state.round)
            if recorded is None or recorded.status is not RoundStatus.OPEN:
                return
            ready = recorded.updates[: screened + _SCREENED_A_LOOK]
            so_far = recorded.model_copy(update={"updates": ready})
            self._screen(so_far, spec, look)
        except Problem as problem:  # the round's end does it again, and is held up by what it cannot do
            _log.warning("not screened yet", job=job, round=state.round, code=problem.problem_code)
            return
        self._screened[place] = len(ready)
        look.more = len(ready) < len(recorded.updates)

    def _reject_others(self, row: JobRow, spec: JobSpec, state: JobState, look: _Look) -> None:
        """Reject what was recorded since it was settled who is in the sum: hospitals agree to what the ledger has."""
        shown = self._ledger.standing(row.id, state.round)
        if (
            shown is not None
            and shown.status is RoundStatus.OPEN
            and shown.updates - shown.rejected > len(state.cohort)
        ):
            recorded = self._ledger.round(row.id, state.round)
            if recorded is not None:
                self._screen(recorded, spec, look)

    def _facts(self, row: JobRow, spec: JobSpec, state: JobState, look: _Look) -> rounds.Facts:
        live: frozenset[str] = frozenset()
        members: frozenset[str] = frozenset()
        # A round that was opened before a crash is found when its plan is made, or made anew; else opening it again is
        # the same opening, by a cohort that is known.
        is_planned = state.phase is Phase.OPENING and state.deadline is not None and time.time() < state.deadline
        if state.phase in {Phase.BASELINE, Phase.OPENING, Phase.EVALUATING, Phase.TRAINING} and not is_planned:
            members = self._ledger.hospitals()
            live = members & self._store.heard(self._node_seconds, spec.classification)
        ledger = None
        if state.stopping or state.phase is Phase.TRAINING or (state.phase is Phase.OPENING and not is_planned):
            look.recorded = self._ledger.round(row.id, state.round) if state.round else None
            ledger = ledger_facts.of(look.recorded, members) if look.recorded else None
        evaluated: frozenset[str] = frozenset()
        score = None
        if state.phase in {Phase.BASELINE, Phase.EVALUATING} and state.deadline is not None:
            reports = self._reported(row, state)
            evaluated = frozenset(reports)
            told = spec.classification
            pooled = None if spec.target is None else scores.pooled(list(reports.values()), told)
            score = None if pooled is None else judging.value(judging.headline(told), pooled, told)
        return rounds.Facts(time.time(), live, ledger, evaluated, score, *look.seen)

    def _make(self, row: JobRow, spec: JobSpec, state: JobState, move: rounds.Move, look: _Look) -> bool:
        """Make one move; False where there is nothing to do but wait."""
        match move:
            case rounds.Wait(reason):
                if reason != state.detail and self._may_say(state):
                    self._save(row, replace(state, detail=reason))
                return False
            case rounds.Enter(new):
                if new.aborted > state.aborted or new.phase in rounds.TERMINAL:
                    self._store.masking.close(row.id, state.round)
                self._save(row, new)
                self._entered(row.id, state, new)
            case rounds.AskEvaluations(new):
                counts = self._store.class_counts(row.id, spec)
                self._save(row, new, tasks=dispatch.evaluations(row.id, spec, new, counts))
                self._dispatch(row.id)
            case rounds.OpenRound(new):
                self._open(row, spec, new)
            case rounds.Commit():
                self._ledger.commit(row.id, state.round)
                shown = self._ledger.standing(row.id, state.round)
                if shown is None or not shown.committed:
                    return False  # the chain service's reading is behind its writing: the event wakes the job
            case rounds.Unmask():
                return self._unmask(row, spec, state, look)
            case rounds.Fold():
                if not self._fold(row, spec, state, look):
                    return False
            case rounds.AbortRound(new):
                self._ledger.abort(row.id, state.round)
                self._store.masking.close(row.id, state.round)
                self._save(row, new)
                self._metrics.rounds.labels(ABORTED).inc()
            case rounds.Publish(new):
                reports = self._reported(row, new).values()
                self._save(row, publish(self._ledger, self._artifacts, row.id, spec, new, reports))
        _log.info("job moved", job=row.id, move=type(move).__name__, round=state.round)
        return True

    def _reported(self, row: JobRow, state: JobState) -> dict[str, EvaluationReport]:
        """What hospitals reported on a state's head."""
        at = state.round if state.closed else 0
        return self._store.reports(row.id, at).get(at, {})

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
                expected=len(new.cohort) or None,
            )
        )
        if spec.secure is not None:
            self._store.masking.open(row.id, new.round, time.time())
        opened = RoundRow(
            job=row.id, round=new.round, base=new.head, deadline=deadline, opened_at=time.time(), summary={}
        )
        self._save(row, new, tasks=dispatch.trainings(row.id, spec, new, self._store.abilities()), round_=opened)
        self._dispatch(row.id)

    def _screen(self, recorded: LedgerRound, spec: JobSpec, look: _Look) -> LedgerRound:
        """Screen a round's updates, of a secure one those that its room takes."""
        registered = self._store.training_images([item.update.hospital for item in recorded.updates])
        sharers = moves.sharers(look.seen.room, spec)
        told = facts.classes_told(spec)
        return self._folder.screen(recorded, registered, spec.encoding, spec.strategy.asynchronous, sharers, told)

    def _unmask(self, row: JobRow, spec: JobSpec, state: JobState, look: _Look) -> bool:
        """Screen, settle who is in the sum, ask those to unmask it; False where files are waited for."""
        room, recorded = look.seen.room, look.recorded
        assert room is not None, "else there would be no such move"
        if room.stage is Stage.INPUTS:
            assert recorded is not None, "it was looked at"
            screened = self._screen(recorded, spec, look)
            if self._is_lost(row, state) or not self._shows(screened):
                return False
            room = self._masking.settle(room, spec, screened, time.time())
        if room.survivors is not None and room.stage is not Stage.ABORTED:
            new = rounds.unmasking(spec, state, room.survivors.survivors, time.time())
            self._save(row, new, tasks=dispatch.unmaskings(row.id, spec, new, room.survivors))
            self._dispatch(row.id)
        return True

    def _shows(self, screened: LedgerRound) -> bool:
        """Whether the ledger's reading has all rejections by now: hospitals agree to a sum by what they read there.
        Else the event that is to come wakes the job."""
        shown = self._ledger.standing(screened.job, screened.round)
        return shown is not None and (shown.updates, shown.rejected) == (screened.submitted, screened.rejected)

    def _is_lost(self, row: JobRow, state: JobState) -> bool:
        """Whether hospitals must bring their updates' files again, which is said."""
        if self._folder.lost:
            words = f"{len(self._folder.lost)} updates' files had changed; their hospitals bring them again"
            if state.detail != words:
                self._save(row, replace(state, detail=words))
        return bool(self._folder.lost)

    def _fold(self, row: JobRow, spec: JobSpec, state: JobState, look: _Look) -> bool:
        """Screen, fold, close; False where files are waited for."""
        # What was looked at a moment ago will do: the contract refuses a closure that misses an update.
        recorded, look.recorded = look.recorded or self._ledger.round(row.id, state.round), None
        if recorded is None:
            raise RoundNotFound(f"the ledger has no round {state.round} of this job")
        started, size = time.monotonic(), 0
        if recorded.status is RoundStatus.OPEN:
            recorded = self._screen(recorded, spec, look)
            if self._is_lost(row, state):
                return False
            room = look.seen.room
            if room is not None and (fault := moves.fault(room, recorded)) is not None:
                self._masking.give_up(room, fault, time.time())
                return True
            if len(recorded.accepted()) < spec.quorum:
                self._save(row, replace(state, phase=Phase.TRAINING))
                return True
            digest = self._folder.fold(recorded, spec, None if room is None else room.unmasking)
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
                self._save(row, state)
                return True
        elif recorded.global_digest is None:
            self._save(row, rounds.after_abort(state, "the round was aborted on the ledger"))
            self._metrics.rounds.labels(ABORTED).inc()
            return True
        else:
            digest = recorded.global_digest
        seconds = summary.seconds(recorded, self._ledger) | {FOLDING: time.monotonic() - started}
        opened = self._store.round(row.id, state.round)
        closed = RoundRow(
            job=row.id,
            round=state.round,
            base=state.head,
            model=digest,
            deadline=recorded.deadline,
            opened_at=None if opened is None else opened.opened_at,
            closed_at=time.time(),
            summary=summary.of(recorded, seconds),
        )
        self._store.masking.close(row.id, state.round)
        self._save(row, rounds.after_close(spec, state, digest), round_=closed)
        self._metrics.closed(len(recorded.accepted()), size, seconds)
        self._screened.pop((row.id, state.round), None)
        self._folder.release(recorded)
        return True

    def _see_to_head(self, row: JobRow, spec: JobSpec, state: JobState) -> None:
        """Make a head again that its hospitals cannot fetch, because its file had changed and was put aside.

        It is a fold of updates that are kept, to the same bytes. Initial weights are for who brought them.
        """
        if time.monotonic() - self._seen_to.get(row.id, float("-inf")) < _HEAD_SECONDS:
            return
        self._seen_to = {row.id: time.monotonic()}
        if not self._artifacts.is_put_aside(state.head):
            return
        made = [each.round for each in self._store.rounds(row.id) if each.round and each.model == state.head]
        recorded = self._ledger.round(row.id, made[-1]) if made else None
        if recorded is None:
            _log.error("initial model lost, upload it again", job=row.id, artifact=state.head)
            return
        digest = self._folder.fold_again(recorded, spec, self._store.masking.unmasking(row.id, recorded.round))
        _log.warning("head made again, its file had changed", job=row.id, round=recorded.round, artifact=digest)

    def _entered(self, job: str, state: JobState, new: JobState) -> None:
        """Measure what ended with a change of state: a round given up elsewhere, an evaluation."""
        if new.aborted > state.aborted:
            self._metrics.rounds.labels(ABORTED).inc()
        if state.phase is Phase.EVALUATING and new.phase in {Phase.OPENING, Phase.PUBLISHING}:
            closed = self._store.round(job, state.round)
            closed_at = (closed and closed.closed_at) or time.time()
            self._metrics.seconds.labels(EVALUATING).observe(time.time() - closed_at)

    def _may_say(self, state: JobState) -> bool:
        """Whether how far a wait is may be saved now: not for each hospital of many, and a large cohort's state is
        large besides. What is not said now is said at the next tick."""
        now = time.monotonic()
        if now - self._said_at < min(1.0, len(state.cohort) // 10 * _SAID_SECONDS):
            return False
        self._said_at = now
        return True

    def _dispatch(self, job: str) -> None:
        """Hand what waits to the broker. After a crash in between some tasks are sent again, which nodes recognise."""
        while tasks := self._store.unsent(job, _SENT_TOGETHER):
            for task in tasks:
                self._send(task.hospital, task.name, task.task)
            self._store.sent(tasks)

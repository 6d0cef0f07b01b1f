"""The life of a job as a pure state machine: what is known in, the next move out.

Rules, in the order they apply:

1. A job that was asked to stop gives up an open round and ends. One that is paused ends what is under way (a round that
   is open, its evaluation, the baseline once it was asked for) and begins nothing new.
2. The initial model is evaluated first (round 0), then rounds are opened one after another on the job's head.
3. A round is planned (cohort and deadline written down) before it is opened on the chain, so that a crash between the
   two repeats the same opening; a plan whose deadline passed unopened is made anew.
4. A secure round (`masking.rules`) waits first until its hospitals have agreed on masks, and then for the updates of
   those that did. Before it is folded its updates are screened, which settles who is in the sum; they are asked to
   unmask it. What cannot be unmasked in time is given up.
5. A round is folded when all of its cohort has submitted, or at its deadline if its quorum has. Where more were asked
   than are needed (over-selection), and in an asynchronous job, it is folded as soon as its quorum has, whoever they
   are. In a Merkle round updates are collected
   until then, and committed first, at most `COMMIT_GRACE` after the deadline; what is committed goes on as if it had
   been recorded, whoever committed it and however many it are.
6. After screening, too few accepted updates send the round back to waiting if its deadline allows, else it is aborted;
   a committed round takes no further update and is aborted at once. After `MAX_ABORTED` aborted rounds in a row the
   job fails.
7. A closed round's model is evaluated by whoever is there, at most until the evaluation's deadline; where it was asked
   for so, only every so many rounds and after the last. An asynchronous job waits for the evaluations of as many as its
   quorum: others may still train.
8. Target reached or all rounds closed: the model is published and the job is finished.

No clock, disk or network here: `Facts` carries the time.

Sources: over-selection, Bonawitz et al., "Towards Federated Learning at Scale" (2019), section 2.2; asynchronous jobs,
Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022), algorithm 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from concilia_kit.wire.chain import RoundStanding, RoundStatus
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.masking import Stage

from concilia_aggregator.masking import rules
from concilia_aggregator.masking.rules import Room

MAX_ABORTED = 3
GRACE_SECONDS = 2
"""A deadline is over this much later, so that an update in the deadline's last block is seen before it is judged."""
COMMIT_GRACE = 3600
"""Seconds after its deadline until which the contract takes a round's commitment; its constant of that name."""

PAUSED = "paused by an administrator"

TERMINAL = frozenset({Phase.FINISHED, Phase.FAILED, Phase.STOPPED})


@dataclass(frozen=True, slots=True)
class JobState:
    """What is persisted of a job's progress.

    `round` is the number of the last round planned (0 before the first), `closed` how many were closed, `aborted` how
    many were given up in a row, `deadline` (Unix seconds) and `cohort` belong to what is being waited for, if anything.
    """

    phase: Phase
    head: str
    round: int = 0
    closed: int = 0
    aborted: int = 0
    deadline: int | None = None
    cohort: frozenset[str] = frozenset()
    stopping: bool = False
    paused: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """The current round as the ledger shows it: `recorded` hospitals in it, `accepted` of them not rejected.

    In a `merkle` round that is not `committed` yet: those collected, and as many of them as would be committed now.
    """

    status: RoundStatus
    base: str
    deadline: int
    recorded: frozenset[str]
    accepted: int
    global_digest: str | None = None
    merkle: bool = False
    committed: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at a moment: time, who could take part, the ledger's word, who evaluated, the score reached, and of
    a secure round its room, with what it waits for in words."""

    now: float
    live: frozenset[str] = frozenset()
    ledger: RoundFacts | None = None
    evaluated: frozenset[str] = frozenset()
    score: float | None = None
    room: Room | None = None
    waits: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something happens; `reason` is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Enter:
    """Take on this state; nothing else happens."""

    state: JobState


@dataclass(frozen=True, slots=True)
class AskEvaluations:
    """Take on this state and ask its cohort to evaluate its head."""

    state: JobState


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Open the planned round on the chain, then take on `state` and ask its cohort to train."""

    state: JobState


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit what was collected on the chain; the state stays, the ledger tells that it was done."""


@dataclass(frozen=True, slots=True)
class Unmask:
    """Screen what was recorded, which settles who is in the sum, and ask those to unmask it (`unmasking`)."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Screen what was recorded, fold what is accepted, close the round on the chain."""


@dataclass(frozen=True, slots=True)
class AbortRound:
    """Give the open round up on the chain, then take on `state`."""

    state: JobState


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish the head on the chain and register it, then take on `state`."""

    state: JobState


Move = Wait | Enter | AskEvaluations | OpenRound | Commit | Unmask | Fold | AbortRound | Publish


def begin(initial: str) -> JobState:
    """A new job's state."""
    return JobState(Phase.BASELINE, head=initial)


def pause(state: JobState) -> JobState:
    """The state of a job that is to begin nothing new."""
    return replace(state, paused=True)


def resume(state: JobState) -> JobState:
    """The state of a job that may go on."""
    return replace(state, paused=False, detail="" if state.detail == PAUSED else state.detail)


def decide(spec: JobSpec, state: JobState, facts: Facts) -> Move:
    """The next move of a job. Raises `ValueError` for a job that has ended."""
    if state.phase in TERMINAL:
        raise ValueError(f"a job that is {state.phase} makes no move")
    if state.stopping:
        stopped = replace(state, phase=Phase.STOPPED, deadline=None, cohort=frozenset(), detail="stopped on request")
        is_open = facts.ledger is not None and facts.ledger.status is RoundStatus.OPEN
        return AbortRound(stopped) if is_open else Enter(stopped)
    match state.phase:
        case Phase.BASELINE | Phase.EVALUATING:
            return _evaluate(spec, state, facts)
        case Phase.OPENING:
            return _open(spec, state, facts)
        case Phase.TRAINING:
            return _train(spec, state, facts)
        case Phase.UNMASKING:
            return _unmask(state, facts)
        case Phase.FOLDING:
            is_lost = facts.room is not None and facts.room.stage is Stage.ABORTED
            return _unmask(state, facts) if is_lost else Fold()
        case _:
            return Publish(replace(state, phase=Phase.FINISHED, deadline=None, cohort=frozenset(), detail="published"))


def early(spec: JobSpec, state: JobState, shown: RoundStanding, now: float, room: Room | None = None) -> Wait | None:
    """Whether a round is certainly still waited for, without a look at its updates: fewer came than are waited for."""
    missing = _awaited(spec, state, room) - shown.updates
    is_open = shown.status is RoundStatus.OPEN and not shown.committed
    if state.stopping or state.deadline is None or not is_open or missing <= 0 or now > state.deadline + GRACE_SECONDS:
        return None
    return Wait(_still_train(spec, state, missing, room))


def early_evaluation(spec: JobSpec, state: JobState, reports: int, now: float) -> Wait | None:
    """The same of an evaluation, of which so many reports came."""
    missing = _evaluations(spec, state) - reports
    if state.stopping or state.deadline is None or missing <= 0 or now > state.deadline:
        return None
    return Wait(f"{missing} of {_evaluations(spec, state)} hospitals still evaluate")


def _evaluate(spec: JobSpec, state: JobState, facts: Facts) -> Move:
    if state.deadline is None:
        if state.paused and state.phase is Phase.BASELINE:
            return Wait(PAUSED)
        if len(facts.live) < spec.quorum:
            return _too_few(spec, facts)
        deadline = int(facts.now) + spec.deadline_seconds
        return AskEvaluations(replace(state, deadline=deadline, cohort=facts.live, detail=""))
    missing = _evaluations(spec, state) - len(state.cohort & facts.evaluated)
    if missing > 0 and facts.now <= state.deadline:
        return Wait(f"{missing} of {_evaluations(spec, state)} hospitals still evaluate")
    reached = spec.target is not None and facts.score is not None and facts.score >= spec.target
    if state.closed and (reached or state.closed >= spec.rounds):
        detail = f"target {spec.target} reached" if reached else "all rounds closed"
        return Enter(replace(state, phase=Phase.PUBLISHING, deadline=None, cohort=frozenset(), detail=detail))
    return Enter(_next_round(state))


def _open(spec: JobSpec, state: JobState, facts: Facts) -> Move:
    if facts.ledger is not None and facts.ledger.status is RoundStatus.OPEN:
        # Opened before a crash: the ledger's deadline counts, not a plan's.
        cohort = state.cohort or facts.live
        return OpenRound(replace(state, phase=Phase.TRAINING, deadline=facts.ledger.deadline, cohort=cohort))
    if state.paused:
        return Wait(PAUSED)
    if state.deadline is None or facts.now >= state.deadline:
        if len(facts.live) < rules.fewest(spec):
            return Wait(f"{len(facts.live)} hospitals ready, {rules.fewest(spec)} needed")
        deadline = int(facts.now) + spec.deadline_seconds
        return Enter(replace(state, deadline=deadline, cohort=_asked(spec, state, facts.live), detail=""))
    return OpenRound(replace(state, phase=Phase.TRAINING))


def _train(spec: JobSpec, state: JobState, facts: Facts) -> Move:
    if facts.ledger is None or state.deadline is None:
        return Wait("the ledger does not show the round yet")
    if facts.ledger.status is RoundStatus.ABORTED:
        return Enter(after_abort(state, "the round was aborted on the ledger"))
    room, asked = facts.room, state.cohort
    if spec.secure is not None:
        if room is None or room.stage in {Stage.KEYS, Stage.SHARES}:
            return Wait(facts.waits or "the hospitals' room is not there yet")
        if room.stage is Stage.ABORTED:
            return AbortRound(after_abort(state, f"round {state.round}: {room.detail}"))
        if room.survivors is not None:
            return Unmask()  # settled before a crash, and perhaps told already
        asked = frozenset(room.sharers)
    enough = spec.closes_at_quorum and facts.ledger.accepted >= spec.quorum
    over = enough or asked <= facts.ledger.recorded or facts.ledger.committed
    if facts.ledger.status is RoundStatus.OPEN and not over and facts.now <= state.deadline + GRACE_SECONDS:
        recorded = facts.ledger.recorded
        missing = _awaited(spec, state, room) - len(recorded if spec.closes_at_quorum else asked & recorded)
        return Wait(_still_train(spec, state, max(1, missing), room))
    return _end(spec, state, facts, facts.ledger)


def _unmask(state: JobState, facts: Facts) -> Move:
    room = facts.room
    if room is None or room.stage is Stage.ABORTED:
        why = "its room is gone" if room is None else room.detail
        return AbortRound(after_abort(state, f"round {state.round}: {why}"))
    if room.stage is Stage.OVER:
        return Enter(replace(state, phase=Phase.FOLDING, detail=""))
    return Wait(facts.waits)


def _end(spec: JobSpec, state: JobState, facts: Facts, ledger: RoundFacts) -> Move:
    """The move of a round that nobody of its cohort is waited for any more."""
    if ledger.status is RoundStatus.CLOSED:
        return Enter(replace(state, phase=Phase.FOLDING, detail=""))
    if ledger.accepted >= spec.quorum:
        return _fold_or_commit(spec, state, facts, ledger)
    if facts.now <= state_deadline(state) + GRACE_SECONDS and _others_may_come(state, facts, ledger):
        return Wait(f"{ledger.accepted} accepted updates, {spec.quorum} needed; waiting for others")
    detail = f"round {state.round}: {ledger.accepted} accepted updates at its end, {spec.quorum} needed"
    return AbortRound(after_abort(state, detail))


def _fold_or_commit(spec: JobSpec, state: JobState, facts: Facts, ledger: RoundFacts) -> Move:
    if not ledger.merkle or ledger.committed:
        if spec.secure is not None:
            return Unmask()
        return Enter(replace(state, phase=Phase.FOLDING, detail=""))
    if facts.now <= ledger.deadline + COMMIT_GRACE:
        return Commit()
    detail = f"round {state.round}: its updates could not be committed within an hour after its deadline"
    return AbortRound(after_abort(state, detail))


def _others_may_come(state: JobState, facts: Facts, ledger: RoundFacts) -> bool:
    asked = state.cohort | facts.live if facts.room is None else frozenset(facts.room.sharers)
    return not ledger.committed and bool(asked - ledger.recorded)


def state_deadline(state: JobState) -> int:
    """The deadline of a state that has one. Raises `ValueError`."""
    if state.deadline is None:
        raise ValueError(f"{state.phase} has no deadline")
    return state.deadline


def after_abort(state: JobState, detail: str) -> JobState:
    """The state after a round was given up: another round, or failure after `MAX_ABORTED` in a row."""
    if state.aborted + 1 >= MAX_ABORTED:
        return replace(
            state, phase=Phase.FAILED, aborted=state.aborted + 1, deadline=None, cohort=frozenset(), detail=detail
        )
    return replace(_next_round(state), aborted=state.aborted + 1, detail=detail)


def unmasking(spec: JobSpec, state: JobState, survivors: Collection[str], now: float) -> JobState:
    """The state of a round whose sum is settled, and is to be unmasked by those that are in it. Raises `ValueError` for
    a job that is not secure."""
    if spec.secure is None:
        raise ValueError("there are no masks on updates of this job")
    deadline = int(now) + rules.UNMASKING_STAGES * spec.secure.stage_seconds
    return replace(state, phase=Phase.UNMASKING, deadline=deadline, cohort=frozenset(survivors), detail="")


def after_close(spec: JobSpec, state: JobState, global_digest: str) -> JobState:
    """The state after a round was closed on a new head."""
    closed = replace(
        state,
        phase=Phase.EVALUATING,
        head=global_digest,
        closed=state.closed + 1,
        aborted=0,
        deadline=None,
        cohort=frozenset(),
        detail="",
    )
    is_evaluated = closed.closed % spec.evaluate_every == 0 or closed.closed >= spec.rounds
    return closed if is_evaluated else _next_round(closed)


def _next_round(state: JobState) -> JobState:
    return replace(state, phase=Phase.OPENING, round=state.round + 1, deadline=None, cohort=frozenset(), detail="")


def _asked(spec: JobSpec, state: JobState, live: frozenset[str]) -> frozenset[str]:
    """Whom a round asks: all who are there, or of these so many times the quorum as the job says, drawn by its seed."""
    if spec.over_selection is None:
        return live
    count = math.ceil(spec.quorum * spec.over_selection)

    def lot(address: str) -> bytes:
        return hashlib.sha256(f"{spec.seed}/{state.round}/{address}".encode()).digest()

    return frozenset(sorted(live, key=lot)[:count])


def _awaited(spec: JobSpec, state: JobState, room: Room | None = None) -> int:
    """How many updates a round waits for before its deadline."""
    if room is not None:
        return len(room.sharers)
    return min(spec.quorum, len(state.cohort)) if spec.closes_at_quorum else len(state.cohort)


def _evaluations(spec: JobSpec, state: JobState) -> int:
    """How many reports an evaluation waits for before its deadline."""
    return min(spec.quorum, len(state.cohort)) if spec.strategy.asynchronous else len(state.cohort)


def _still_train(spec: JobSpec, state: JobState, missing: int, room: Room | None = None) -> str:
    if not spec.closes_at_quorum:
        return f"{missing} of {_awaited(spec, state, room)} hospitals still train"
    return f"{missing} of {spec.quorum} updates are missing; {len(state.cohort)} hospitals were asked"


def _too_few(spec: JobSpec, facts: Facts) -> Wait:
    return Wait(f"{len(facts.live)} hospitals ready, {spec.quorum} needed")

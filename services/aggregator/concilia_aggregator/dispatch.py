"""What a cohort is asked to do: a task for each of its nodes, as rows of the outbox. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.masking import Survivors
from concilia_kit.wire.training import (
    EVALUATE_TASK,
    TRAIN_TASK,
    UNMASK_TASK,
    EvaluateTask,
    LocalTraining,
    Personal,
    Task,
    TrainTask,
    UnmaskTask,
)

from concilia_aggregator import rounds, schedules, strategies
from concilia_aggregator.rounds import JobState
from concilia_aggregator.tables import OutboxRow

ClassCounts = tuple[int, ...] | None


def trainings(job: str, spec: JobSpec, state: JobState, abilities: Mapping[str, frozenset[str]]) -> list[OutboxRow]:
    """A task a hospital; whose node cannot encode as the job asks sends its update plain."""
    plain = _training(job, spec, state)
    encoded = plain.model_copy(update={"encoding": spec.encoding})
    plain_task, encoded_task = plain.model_dump(mode="json"), encoded.model_dump(mode="json")
    return [
        OutboxRow(
            job=job,
            hospital=address,
            name=TRAIN_TASK,
            task=encoded_task if spec.encoding.needs <= abilities.get(address, frozenset()) else plain_task,
        )
        for address in sorted(state.cohort)
    ]


def evaluations(job: str, spec: JobSpec, state: JobState, counts: ClassCounts = None) -> list[OutboxRow]:
    """Evaluate a state's head. `counts`: all hospitals' pictures by class, where answers go by own shares; they are
    known once the initial model was evaluated."""
    task = _evaluation(job, spec, state, counts).model_dump(mode="json")
    return [OutboxRow(job=job, hospital=address, name=EVALUATE_TASK, task=task) for address in sorted(state.cohort)]


def unmaskings(job: str, spec: JobSpec, state: JobState, survivors: Survivors) -> list[OutboxRow]:
    """Agree to a sum, and unmask it: for those that are in it."""
    task = _unmasking(job, spec, state, survivors).model_dump(mode="json")
    return [OutboxRow(job=job, hospital=address, name=UNMASK_TASK, task=task) for address in survivors.survivors]


def assigned(
    job: str,
    spec: JobSpec,
    state: JobState,
    hospital: str,
    abilities: frozenset[str],
    now: float,
    survivors: Survivors | None = None,
    counts: ClassCounts = None,
) -> Task | None:
    """What a job asks of one hospital now, by its state alone: it may have been done already. `survivors` of a round
    that is being unmasked; `counts` as in `evaluations`.

    A round that waits for all who are there also takes one that comes while it is open, but a secure one, whose masks
    are of those it began with. One that is being folded still asks its cohort: an update whose file was lost is to be
    brought again.
    """
    if state.stopping or state.deadline is None or now > state.deadline:
        return None
    asked = hospital in state.cohort
    takes_others = state.phase is Phase.TRAINING and spec.over_selection is None and spec.secure is None
    if takes_others or (asked and state.phase in {Phase.TRAINING, Phase.FOLDING}):
        task = _training(job, spec, state)
        if spec.encoding.needs <= abilities:
            task = task.model_copy(update={"encoding": spec.encoding})
        return task
    if state.phase is Phase.UNMASKING and asked and survivors is not None:
        return _unmasking(job, spec, state, survivors)
    if state.phase in {Phase.BASELINE, Phase.EVALUATING} and asked:
        return _evaluation(job, spec, state, counts)
    return None


def _training(job: str, spec: JobSpec, state: JobState) -> TrainTask:
    return TrainTask(
        job=job,
        round=state.round,
        architecture=spec.architecture,
        base=state.head,
        seed=spec.seed,
        deadline=rounds.state_deadline(state),
        local=_local(spec, state.round),
        asynchronous=spec.strategy.asynchronous,
        classification=spec.classification,
        secure=spec.secure,
        privacy=spec.privacy,
        central=spec.strategy.central,
    )


def _unmasking(job: str, spec: JobSpec, state: JobState, survivors: Survivors) -> UnmaskTask:
    return UnmaskTask(
        job=job,
        round=state.round,
        deadline=rounds.state_deadline(state),
        survivors=survivors,
        classification=spec.classification,
    )


def _evaluation(job: str, spec: JobSpec, state: JobState, counts: ClassCounts) -> EvaluateTask:
    return EvaluateTask(
        job=job,
        round=state.round if state.closed else 0,
        architecture=spec.architecture,
        model=state.head,
        seed=spec.seed,
        image_size=spec.local.image_size,
        evaluation=spec.evaluation if not state.closed else spec.evaluation.model_copy(update={"class_counts": counts}),
        personal=_local(spec, max(state.round, 1)).personal,
        classification=spec.classification,
        calibrate=spec.calibrate and _may_be_published(spec, state),
    )


def _may_be_published(spec: JobSpec, state: JobState) -> bool:
    """Whether a state's head may be the one that a job ends with: more need not leave a hospital of any other."""
    return state.closed >= spec.rounds or (spec.target is not None and state.closed > 0)


def _local(spec: JobSpec, round_: int) -> LocalTraining:
    """What hospitals are given: what schedule and strategy set is theirs, whatever a job's author wrote there."""
    nothing = {"control": False, "personal": Personal.NOTHING, "first_loss": False, "class_counts": False}
    plain = spec.local.model_copy(update=nothing)
    plain = schedules.of_round(plain, spec.schedule, round_, spec.rounds)
    return strategies.make(spec.strategy, strategies.Setting(spec.local)).local(plain)

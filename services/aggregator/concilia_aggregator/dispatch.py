"""What a cohort is asked to do: a task for each of its nodes, as rows of the outbox. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.training import EVALUATE_TASK, TRAIN_TASK, EvaluateTask, TrainTask

from concilia_aggregator import rounds, strategies
from concilia_aggregator.rounds import JobState
from concilia_aggregator.tables import OutboxRow


def trainings(job: str, spec: JobSpec, state: JobState, abilities: Mapping[str, frozenset[str]]) -> list[OutboxRow]:
    """A task a hospital; whose node cannot encode as the job asks sends its update plain."""
    plain = TrainTask(
        job=job,
        round=state.round,
        architecture=spec.architecture,
        base=state.head,
        seed=spec.seed,
        deadline=rounds.state_deadline(state),
        local=strategies.make(spec.strategy).local(spec.local),
    )
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


def evaluations(job: str, spec: JobSpec, state: JobState) -> list[OutboxRow]:
    """Evaluate a state's head."""
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

"""A job's head published on the ledger, and registered to be served."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import Publication
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.models import ModelRegistration
from concilia_kit.wire.training import EvaluationReport

from concilia_aggregator import calibrating
from concilia_aggregator.artifacts import Artifacts
from concilia_aggregator.ledger import Ledger
from concilia_aggregator.rounds import JobState

_FOR_GOOD = frozenset({"weights_do_not_fit", "already_registered"})
"""Refusals of a registration that will be the same next time."""

_log = logs.get(__name__)


def publish(
    ledger: Ledger,
    artifacts: Artifacts,
    job: str,
    spec: JobSpec,
    new: JobState,
    reports: Collection[EvaluationReport],
) -> JobState:
    """Publish and register a head; the state after it, a failed one where no other try would be taken. `reports`: what
    hospitals reported on it. Raises `Problem`."""
    ledger.publish(Publication(job=job, digest=new.head))
    registration = ModelRegistration(
        job=job,
        digest=new.head,
        architecture=spec.architecture,
        image_size=spec.local.image_size,
        classification=spec.classification,
        use=calibrating.use(reports, spec),
    )
    try:
        artifacts.register(registration)
    except Problem as problem:
        if problem.problem_code not in _FOR_GOOD:
            raise
        _log.error("model not registered", job=job, code=problem.problem_code, detail=problem.detail)
        return replace(new, phase=Phase.FAILED, detail=f"published on the ledger, not served: {problem.detail}"[:500])
    return new

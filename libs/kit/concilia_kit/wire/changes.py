"""What a job's event stream tells while the job goes on."""

from __future__ import annotations

from enum import StrEnum

from concilia_kit.signing import Address
from concilia_kit.wire.base import Wire
from concilia_kit.wire.jobs import Phase
from concilia_kit.wire.progress import Progress


class Change(StrEnum):
    """What a job's event stream tells, by the events' names.

    `SNAPSHOT` carries a `JobView`, `LEDGER` a `LedgerEvent`, `JOB` a `JobChange`, `ROUND` a `RoundChange`, `PROGRESS` a
    `ProgressChange`, `EVALUATION` an `EvaluationChange`, `VERIFICATION` a `Verification` without its findings.
    """

    SNAPSHOT = "snapshot"
    LEDGER = "ledger"
    JOB = "job"
    ROUND = "round"
    PROGRESS = "progress"
    EVALUATION = "evaluation"
    VERIFICATION = "verification"


class JobChange(Wire):
    """A job moved on."""

    phase: Phase
    round: int
    detail: str
    paused: bool


class RoundChange(Wire):
    """A round was opened, or closed."""

    round: int


class ProgressChange(Wire):
    """A node said what it is doing."""

    round: int
    hospital: Address
    progress: Progress


class EvaluationChange(Wire):
    """A site's evaluation of a round's model is in."""

    round: int
    hospital: Address


def job_stream(job: str) -> str:
    """The Redis stream with a job's changes: each a `Change` under the field `name`, its JSON under `data`."""
    return f"concilia:job:{job}"

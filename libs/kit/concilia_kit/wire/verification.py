"""Verifications as they are asked for, watched and told."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import AwareDatetime, Field

from concilia_kit.digests import JobId
from concilia_kit.signing import Address
from concilia_kit.wire.base import Wire


class Finding(Wire):
    """Something that does not agree: which round, whose, which digest, and what is wrong."""

    round: int
    hospital: str | None
    digest: str | None
    what: str


class Verdict(Wire):
    """What a verification came to. `notes` say what it could not know, or did not look at."""

    job: str
    ok: bool
    rounds: int
    updates: int
    signatures: int
    rejected: int
    bytes_read: int
    published: str | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


class VerificationState(StrEnum):
    """Where a verification stands. `FAILED` says that it could not be brought to an end, nothing of the job."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Verification(Wire):
    """A job recomputed in the background. `verdict` is there once it is done, `detail` says why it failed."""

    id: str
    job: JobId
    state: VerificationState
    fraction: float = Field(ge=0, le=1, description="updates checked and rounds folded, of all")
    step: str
    verdict: Verdict | None
    detail: str
    asked_by: Address
    asked_at: AwareDatetime
    finished_at: AwareDatetime | None

    def brief(self) -> Self:
        """The same without its findings, of which there may be many."""
        if self.verdict is None:
            return self
        return self.model_copy(update={"verdict": self.verdict.model_copy(update={"findings": ()})})

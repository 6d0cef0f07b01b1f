"""What this service asks the ledger, and the chain service's answer to it."""

from __future__ import annotations

from typing import Protocol

import httpx
from concilia_kit import http
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.wire.chain import LedgerJob


class Ledger(Protocol):
    """Reads jobs."""

    def job(self, job: str) -> LedgerJob:
        """A job as recorded. Raises `Problem` with status 404 for an unknown one, `Unavailable` without an answer."""


class HttpLedger:
    """The ledger by way of the chain service. Constructing it opens no connection."""

    def __init__(self, client: httpx.Client, retry_seconds: float = 10.0) -> None:
        self._client = client
        self._retry_seconds = retry_seconds

    def job(self, job: str) -> LedgerJob:
        """See `Ledger.job`."""
        try:
            answer = http.call(self._client, "GET", f"/v1/jobs/{job}", retry_seconds=self._retry_seconds)
        except Problem as problem:
            if problem.problem_status in (401, 403):  # the caller's own token is not what was refused
                raise Unavailable(
                    "the chain service refuses the model service's own address; grant it the auditor role"
                ) from problem
            raise
        return LedgerJob.model_validate_json(answer.content)

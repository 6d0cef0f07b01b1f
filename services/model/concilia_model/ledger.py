"""What this service asks the ledger, and the chain service's answer to it."""

from __future__ import annotations

from typing import Any, Protocol

import httpx
from concilia_kit import http
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.wire.chain import EventName, EventPage, LedgerJob, LedgerRound

PAGE = 1000
"""Events asked for at one time, the most that the chain service gives."""


class Ledger(Protocol):
    """Reads jobs, rounds and events. Every method raises `Unavailable` without an answer."""

    def job(self, job: str) -> LedgerJob:
        """A job as recorded. Raises `Problem` with status 404 for an unknown one."""

    def round(self, job: str, number: int) -> LedgerRound:
        """A round with its updates. Raises `Problem` with status 404 for an unknown one."""

    def events(self, before: str | None = None) -> EventPage:
        """The newest events that concern jobs, or those before an earlier page's; newest first."""


class HttpLedger:
    """The ledger by way of the chain service. Constructing it opens no connection."""

    def __init__(self, client: httpx.Client, retry_seconds: float = 10.0) -> None:
        self._client = client
        self._retry_seconds = retry_seconds

    def job(self, job: str) -> LedgerJob:
        """See `Ledger.job`."""
        return LedgerJob.model_validate_json(self._get(f"/v1/jobs/{job}"))

    def round(self, job: str, number: int) -> LedgerRound:
        """See `Ledger.round`."""
        return LedgerRound.model_validate_json(self._get(f"/v1/jobs/{job}/rounds/{number}"))

    def events(self, before: str | None = None) -> EventPage:
        """See `Ledger.events`."""
        params: dict[str, Any] = {"name": [*EventName], "limit": PAGE}
        if before is not None:
            params["before"] = before
        return EventPage.model_validate_json(self._get("/v1/events", params))

    def _get(self, path: str, params: dict[str, Any] | None = None) -> bytes:
        try:
            return http.call(self._client, "GET", path, params=params, retry_seconds=self._retry_seconds).content
        except Problem as problem:
            if problem.problem_status in (401, 403):  # the caller's own token is not what was refused
                raise Unavailable(
                    "the chain service refuses the model service's own address; grant it the auditor role"
                ) from problem
            raise

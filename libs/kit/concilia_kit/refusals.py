"""One line of the log for each request that is refused for who asks (not signed in, lacking a role, too often, for a
page of another site) or for not being what the route takes. So many a source and so many in all; the rest are counted,
and the next line says how many.

A line has words of our own (code, route's template, roles), the caller's address as its token has it, and the source;
no token, no path as it was sent, no body. Source: OWASP ASVS 5.0, 16.3.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from concilia_kit import logs
from concilia_kit.problems import Problem, Unauthorized, Unprocessable

OF_A_SOURCE = 30
OF_ALL = 600
WINDOW_SECONDS = 60.0
_STATUSES = frozenset({401, 403, 422, 429})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNKNOWN = "unknown"

_log = logs.get(__name__)


class Refusals:
    """Writes lines about refused requests: in `WINDOW_SECONDS` and a process `OF_A_SOURCE` and `OF_ALL` at most.

    `clock` tells monotonic seconds. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = float("-inf")
        self._lines: dict[str, int] = {}
        self._written = self._omitted = 0

    def of_request(self, request: Request, problem: Problem) -> None:
        """Log what was answered to a request, where it is a refusal and in no other line."""
        if problem.problem_status not in _STATUSES or problem.is_logged:
            return
        # A page looks whether somebody is signed in: it brings nothing, and that is no attempt at anything.
        brings_nothing = not {"authorization", "cookie"} & set(request.headers)
        caller = getattr(request.state, "caller", None)
        told: dict[str, Any] = {
            "status": problem.problem_status,
            "code": problem.problem_code,
            "method": request.method if request.method in _METHODS else "other",
            "route": getattr(request.scope.get("route"), "path", "other"),
        }
        if caller is not None:
            told |= {"address": caller.address, "roles": sorted(caller.roles)}
        if needed := getattr(request.state, "needed", ()):
            told["needed"] = sorted(needed)
        is_unknown = problem.problem_status == Unauthorized.status and brings_nothing
        quiet = is_unknown or problem.problem_status == Unprocessable.status  # somebody filled in a form
        self.write("refused", source_of(request), quiet=quiet, **told)

    def write(self, event: str, source: str, *, quiet: bool = False, **told: Any) -> None:
        """A line about what came from a source, unless there were too many; at the level INFO where it is `quiet`."""
        omitted = self._admitted(source)
        if omitted is None:
            return
        if omitted:
            told["omitted"] = omitted
        (_log.info if quiet else _log.warning)(event, source=source, **told)

    def _admitted(self, source: str) -> int | None:
        """How many lines were left out before this one, which may be written; None where it may not."""
        with self._lock:
            now = self._clock()
            if now - self._began >= WINDOW_SECONDS:
                self._began, self._written = now, 0
                self._lines.clear()
            written = self._lines.get(source, 0)
            if written >= OF_A_SOURCE or self._written >= OF_ALL:
                self._omitted += 1
                return None
            self._lines[source] = written + 1
            self._written += 1
            omitted, self._omitted = self._omitted, 0
            return omitted


def source_of(request: Request) -> str:
    """The network address that a request comes from; whom a trusted proxy names was put in the peer's place before."""
    return request.client.host[:64] if request.client else _UNKNOWN

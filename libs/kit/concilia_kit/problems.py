"""Errors as they cross a wire: problem+json (RFC 9457) with a stable code.

A service raises `Problem` (or a subclass that names its code once); a client that receives one raises `Problem` again,
so that an error keeps its code through any number of hops.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An error with an HTTP status and a stable code.

    `code` is a short snake_case word for programs, `detail` one sentence for people, `extra` further members.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str | None = None,
        extra: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problem_status = status or self.status
        self.problem_code = code or self.code
        self.extra = extra or {}
        self.headers = headers or {}
        self.is_logged = False
        """Whether whoever raised it wrote a line about it, so that its answer needs none (see `refusals`)."""

    def document(self) -> dict[str, Any]:
        """The problem+json document."""
        return {
            **self.extra,
            "type": "about:blank",
            "title": self.problem_code.replace("_", " ").capitalize(),
            "status": self.problem_status,
            "code": self.problem_code,
            "detail": self.detail,
        }

    def retry_after(self) -> float | None:
        """Seconds after which the same may be tried again, where that was said (RFC 9110, section 10.2.3)."""
        said = self.headers.get("Retry-After", "")
        if said.isascii() and said.isdigit():
            return float(said)
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None

    @classmethod
    def from_document(cls, document: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Problem:
        """A problem as a peer sent it; tolerant of a peer that is no Concilia service. Of the answer's `headers` it
        keeps when to come back."""
        known = {"type", "title", "status", "code", "detail"}
        said = (headers or {}).get("retry-after")
        return Problem(
            str(document.get("detail") or f"the peer answered {status}"),
            status=status,
            code=str(document.get("code") or f"http_{status}"),
            extra={key: value for key, value in document.items() if key not in known},
            headers=None if said is None else {"Retry-After": said},
        )


class NotFound(Problem):
    """What was asked for is not there."""

    status = 404
    code = "not_found"


class Unauthorized(Problem):
    """No valid token came with the request."""

    status = 401
    code = "unauthorized"


class Forbidden(Problem):
    """The caller is known and may not do this."""

    status = 403
    code = "forbidden"


class Conflict(Problem):
    """The request does not fit the state of what it concerns."""

    status = 409
    code = "conflict"


class Unprocessable(Problem):
    """Well-formed, and still not acceptable."""

    status = 422
    code = "unprocessable"


class Unavailable(Problem):
    """Something this service depends on does not answer; trying again later may help."""

    status = 503
    code = "unavailable"

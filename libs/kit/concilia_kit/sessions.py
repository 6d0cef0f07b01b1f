"""Which sessions ended while tokens that were taken with them live on, for services that are shown one.

A token names its session (`sid`); auth publishes the sessions that were ended, each until its last token has. So
signing out ends what was taken before within a second, at every service, and it costs one question a second. Where auth
does not answer, what it said last counts for a minute (nobody can sign out meanwhile); after that no token with a
session is good.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from concilia_kit.problems import Unavailable
from concilia_kit.published import FRESH_SECONDS, STALE_SECONDS, Published
from concilia_kit.wire.auth import EndedSessions

PATH = "/v1/ended-sessions"


class SessionsEnded:
    """Whether a session has ended, as the auth service tells. Thread-safe."""

    def __init__(
        self,
        auth: httpx.Client,
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ended: Published[frozenset[str]] = Published(
            auth, PATH, _read, frozenset(), _unavailable, fresh_seconds, stale_seconds, clock
        )

    def __call__(self, session: str) -> bool:
        """Whether a session has ended, up to `fresh_seconds` late. Raises `Unavailable`."""
        return session in self._ended.now()

    def at_once(self, session: str) -> bool | None:
        """The same where nobody need be asked; None elsewhere."""
        ended = self._ended.at_once()
        return None if ended is None else session in ended


def _read(document: bytes) -> frozenset[str]:
    return frozenset(EndedSessions.model_validate_json(document).sessions)


def _unavailable() -> Unavailable:
    return Unavailable("which sessions have ended cannot be had at the moment", code="sessions_unavailable")

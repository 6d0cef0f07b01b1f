"""A document that another service publishes for all, asked for once a second at most and remembered.

A question a second, however many use it; an answer without content where nothing changed (RFC 9110, 13.1.2). One thread
asks, the others wait for its answer where what is known will not do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import httpx
from pydantic import ValidationError

from concilia_kit import logs
from concilia_kit.http import call
from concilia_kit.problems import Problem, Unavailable

FRESH_SECONDS = 1.0
STALE_SECONDS = 60.0
PATIENCE = 3.0
"""Seconds for one answer; a request waits for it."""

_Document = TypeVar("_Document")

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Told(Generic[_Document]):
    """A document, the entity tag of the answer that told it, when (monotonic seconds) it was last told and last asked
    for, and since when (Unix seconds) it is known."""

    document: _Document
    tag: str | None = None
    told: float = float("-inf")
    asked: float = float("-inf")
    since: float = float("-inf")


class Published(Generic[_Document]):
    """What a service tells at `path`, as `read` understands it; `read` may raise `ValidationError`.

    Where the service does not answer, what it said last counts until `stale_seconds` after it was asked, so that its
    restart interrupts nobody; after that nothing is known, which `unavailable` says. `clock` tells monotonic seconds,
    `wall` Unix seconds. Thread-safe.
    """

    def __init__(
        self,
        service: httpx.Client,
        path: str,
        read: Callable[[bytes], _Document],
        nothing: _Document,
        unavailable: Callable[[], Unavailable],
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._path = path
        self._read = read
        self._unavailable = unavailable
        self._fresh_seconds = fresh_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._wall = wall
        self._asking = threading.Lock()
        self._known = _Told(nothing)

    def now(self, as_of: float = float("-inf")) -> _Document:
        """The document, known no earlier than `as_of` (Unix seconds) where it can be had. Raises `Unavailable`."""
        known = self._known
        if not self._will_do(known, as_of):
            with self._asking:
                if not self._will_do(self._known, as_of):
                    self._known = self._ask(self._known)
                known = self._known
        if self._is_stale(known):
            raise self._unavailable()
        return known.document

    def at_once(self, as_of: float = float("-inf")) -> _Document | None:
        """The same where nobody need be asked; None elsewhere."""
        known = self._known
        return known.document if not self._is_stale(known) and self._will_do(known, as_of) else None

    def _is_stale(self, known: _Told[_Document]) -> bool:
        return self._clock() - known.told > self._stale_seconds

    def _will_do(self, known: _Told[_Document], as_of: float) -> bool:
        older = known.since < as_of and known.asked == known.told
        return not older and self._clock() - known.asked <= self._fresh_seconds

    def _ask(self, known: _Told[_Document]) -> _Told[_Document]:
        now, began = self._clock(), self._wall()
        headers = {} if known.tag is None else {"If-None-Match": known.tag}
        try:
            answer = call(self._service, "GET", self._path, headers=headers, retry_seconds=0, timeout=PATIENCE)
            if answer.status_code == 304 and known.tag is not None:
                return replace(known, told=now, asked=now, since=began)
            document = self._read(answer.content)
        except (Problem, ValidationError) as error:
            _log.debug("not told", path=self._path, error=type(error).__name__)
            return replace(known, asked=now)
        return _Told(document, answer.headers.get("ETag"), now, now, began)

"""How much a process takes on: what goes beyond is refused at once and unread, with a word of when to come back.

A service that takes on everything answers nobody in time, and in the end breaks where it happens to be weakest. Three
kinds are bounded apart, so that none takes the others' places: requests being answered, small bodies that have not come
whole, and transfers, which are slow and cheap. Who only waits takes none of these places; a stream of events gives its
own back when it begins, because it has a bound elsewhere. Health and metrics always pass: who looks after a busy
service must see that it is busy.

Source: RFC 6585, section 4 (429 Too Many Requests), and RFC 9110, section 10.2.3 (Retry-After).
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

import prometheus_client
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from concilia_kit.bodies import announced, is_streamed
from concilia_kit.problems import MEDIA_TYPE, Problem
from concilia_kit.settings import MAX_REQUESTS, MAX_TRANSFERS

RETRY_SECONDS = 1
"""When to come back. Clients add a random time, so that they do not come back together."""
WAITS = 10
"""How many may wait for each one that is answered."""
ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})


_PLACE = "concilia.place"  # of a scope


class TooBusy(Problem):
    """The service has as much to do as it takes on at one time; nothing was done, so the same may be sent again."""

    status = 429
    code = "too_busy"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": str(RETRY_SECONDS)})


class Kind(StrEnum):
    """What is bounded apart: requests being answered, bodies not yet whole, transfers, and questions that stay open."""

    ANSWER = "answer"
    BODY = "body"
    TRANSFER = "transfer"
    WAIT = "wait"


class Places:
    """The places of a process, and how many of each kind are taken. For one event loop.

    `registry` gets a counter of what was refused.
    """

    def __init__(
        self,
        service: str,
        registry: CollectorRegistry,
        requests: int = MAX_REQUESTS,
        transfers: int = MAX_TRANSFERS,
    ) -> None:
        self.bound(requests, transfers)
        self._taken: Counter[Kind] = Counter()
        self._service = service
        self._refused = prometheus_client.Counter(
            "concilia_http_refused", "Requests refused as too many.", ("service", "kind"), registry=registry
        )

    def bound(self, requests: int, transfers: int) -> None:
        """How many there are from now on. As many bodies may be on their way as requests are answered."""
        self._most = {
            Kind.ANSWER: requests,
            Kind.BODY: requests,
            Kind.TRANSFER: transfers,
            Kind.WAIT: WAITS * requests,
        }

    def are_left(self, kind: Kind) -> bool:
        """Whether one more would be taken on."""
        return self._taken[kind] < self._most[kind]

    def check(self, kind: Kind) -> None:
        """Raise `TooBusy` where none is left."""
        if not self.are_left(kind):
            self._refused.labels(self._service, kind.value).inc()
            raise TooBusy("the service has as much to do as it takes on at one time; come back a little later")

    def take(self, kind: Kind) -> None:
        """Take one. Raises `TooBusy`."""
        self.check(kind)
        self._taken[kind] += 1

    def give_back(self, kind: Kind) -> None:
        """Give one back."""
        self._taken[kind] -= 1


class _Place:
    """One request's place: of one kind at a time, given back once."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.kind: Kind | None = None

    def move(self, kind: Kind) -> None:
        """Take a place of a kind in place of the one that there is. Raises `TooBusy`, and keeps that one."""
        self._places.take(kind)
        self.give_back()
        self.kind = kind

    def give_back(self) -> None:
        """Have none."""
        if self.kind is not None:
            self._places.give_back(self.kind)
            self.kind = None


async def only_waits(request: Request) -> None:
    """For a handler that does nothing from now on until something happens, also as its dependency: its request takes no
    other's place, but one of those who wait (long polling, RFC 6202). Raises `TooBusy`, and keeps the place it has."""
    place: _Place | None = request.scope.get(_PLACE)
    if place is not None:
        place.move(Kind.WAIT)


class Admission:
    """ASGI middleware: takes a place for each request, or answers 429. Paths that begin with one of `streamed` are
    transfers."""

    def __init__(self, app: ASGIApp, places: Places, streamed: tuple[str, ...] = ()) -> None:
        self._app = app
        self._places = places
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while there is a place for it."""
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        place = scope[_PLACE] = _Place(self._places)

        async def receiving() -> Message:
            message = await receive()
            if place.kind is Kind.BODY and message["type"] == "http.request" and not message.get("more_body", False):
                place.move(Kind.ANSWER)
            return message

        async def sending(message: Message) -> None:
            if _is_last(message) or _is_event_stream(message):
                place.give_back()  # before the caller can know, and come again
            await send(message)

        try:
            kind = self._kind(scope)
            if kind is Kind.BODY:
                self._places.check(Kind.ANSWER)  # or it would be read for nothing
            place.move(kind)
            await self._app(scope, receiving, sending)
        except TooBusy as busy:  # of `move`: what an application raises becomes an answer within it
            answer = JSONResponse(busy.document(), busy.problem_status, busy.headers, MEDIA_TYPE)
            await answer(scope, receive, send)
        finally:
            place.give_back()

    def _kind(self, scope: Scope) -> Kind:
        if is_streamed(scope, self._streamed):
            return Kind.TRANSFER
        return Kind.ANSWER if announced(scope) == 0 else Kind.BODY


def _is_last(message: Message) -> bool:
    return bool(message["type"] == "http.response.body" and not message.get("more_body", False))


def _is_event_stream(message: Message) -> bool:
    if message["type"] != "http.response.start":
        return False
    named: dict[bytes, bytes] = dict(message.get("headers", ()))
    return named.get(b"content-type", b"").startswith(b"text/event-stream")

"""Bounds on a request's body before anything parses it: how large it is, and how long it takes to come."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from concilia_kit.problems import MEDIA_TYPE, Problem

MAX_BODY = 64 * 1024
"""Bytes, where a service does not say otherwise. An evaluation's histograms need a third of it."""
BODY_SECONDS = 20.0
"""Until all of a small body has come: 3 KB a second for the largest."""


class BodyTooLarge(Problem):
    """The request's body is larger than the service takes."""

    status = 413
    code = "body_too_large"


class BodyTooSlow(Problem):
    """The request's body did not come in time (RFC 9110, section 15.5.9)."""

    status = 408
    code = "body_too_slow"


def announced(scope: Scope) -> int | None:
    """Bytes of the body that a request's head announces: 0 where there is no body, None where it is sent in chunks."""
    size = 0
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length" and value.isdigit():
            size = int(value)
    return size


def is_streamed(scope: Scope, streamed: tuple[str, ...]) -> bool:
    """Whether a request's path begins with one of `streamed`, whose bodies are read as they come."""
    return bool(streamed) and scope["path"].startswith(streamed)


class BodyLimit:
    """ASGI middleware: refuses a body beyond `limit` bytes unread where its head announces it, else as soon as it goes
    beyond; and one that has not come whole after `BODY_SECONDS`.

    Paths that begin with one of `streamed` bound their bodies themselves, while they stream.
    """

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY, streamed: tuple[str, ...] = ()) -> None:
        self._app = app
        self._limit = limit
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, which is small, and hand it on as one message."""
        if scope["type"] != "http" or is_streamed(scope, self._streamed):
            await self._app(scope, receive, send)
            return
        size = announced(scope)
        try:
            if size == 0:
                body = await self._read(receive)
            else:
                self._check(size or 0)
                async with asyncio.timeout(BODY_SECONDS):
                    body = await self._read(receive)
        except BodyTooLarge as problem:
            await _refuse(problem, scope, receive, send)
            return
        except TimeoutError:
            slow = f"the request's body did not come within {BODY_SECONDS:g} s"
            await _refuse(BodyTooSlow(slow, headers={"Connection": "close"}), scope, receive, send)
            return
        if body is None:
            return  # the client is gone
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, None where the client went away. Raises `BodyTooLarge`."""
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            self._check(len(body))
        return body

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise BodyTooLarge(f"a request to this service has at most {self._limit} bytes")


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    answer = JSONResponse(problem.document(), problem.problem_status, problem.headers, MEDIA_TYPE)
    await answer(scope, receive, send)

"""Bounds on a request's body before anything parses it."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from concilia_kit.problems import MEDIA_TYPE, Problem

MAX_BODY = 64 * 1024
"""Bytes. The largest JSON a service takes, an evaluation's histograms, needs a third of it."""


class BodyTooLarge(Problem):
    """The request's body is larger than the service takes."""

    status = 413
    code = "body_too_large"


class BodyLimit:
    """ASGI middleware: refuses a body beyond `limit` bytes as soon as it goes beyond, whatever its header says.

    Paths that begin with one of `streamed` bound their bodies themselves, while they stream.
    """

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY, streamed: tuple[str, ...] = ()) -> None:
        self._app = app
        self._limit = limit
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, which is small, and hand it on as one message."""
        if scope["type"] != "http" or (self._streamed and scope["path"].startswith(self._streamed)):
            await self._app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client is gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                problem = BodyTooLarge(f"a request to this service has at most {self._limit} bytes")
                refusal = JSONResponse(problem.document(), problem.problem_status, media_type=MEDIA_TYPE)
                await refusal(scope, receive, send)
                return
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

"""Answers that nobody keeps unless their route says otherwise: what a service tells depends on who asks, and when.

Source: RFC 9111, section 5.2.2.5 (`no-store`).
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAME = b"cache-control"
_NOT_KEPT = (_NAME, b"no-store")


class NotKept:
    """ASGI middleware: `Cache-Control: no-store` on each answer that has no `Cache-Control`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and complete its answer's head."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if not any(name.lower() == _NAME for name, _ in headers):
                    message = {**message, "headers": [*headers, _NOT_KEPT]}
            await send(message)

        await self._app(scope, receive, sent)

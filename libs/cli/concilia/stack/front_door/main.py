"""The one place that puts the front door together, and how it is served."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from concilia_kit import logs, serving, web
from concilia_kit.settings import read
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from concilia.stack.front_door.pages import Pages
from concilia.stack.front_door.proxy import ReverseProxy
from concilia.stack.front_door.settings import FrontSettings, page_headers

STOP_SECONDS = 1
"""How long requests may go on once the process was told to stop; an event stream would go on for ever."""

_log = logs.get(__name__)


def build(settings: FrontSettings) -> ASGIApp:
    """The application. Opens no connection. Raises `ValueError` for headers that are none."""
    services = ("auth", "model", "aggregator", "chain")
    proxy = ReverseProxy({name: getattr(settings, f"{name}_url") for name in services})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.aclose()

    return AccessLog(
        Starlette(
            routes=[
                Route("/healthz", _healthz),
                Mount("/api", proxy),
                Mount("/", Pages(settings.pages, page_headers(settings.headers))),
            ],
            lifespan=lifespan,
        )
    )


class AccessLog:
    """ASGI middleware: a line a request, without its query."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log what it came to; status 499 where its caller left first."""
        began, status = time.perf_counter(), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            if scope["type"] == "http" and scope["path"] != "/healthz":
                seconds = round(time.perf_counter() - began, 3)
                _log.info("request", method=scope["method"], path=scope["path"], status=status, seconds=seconds)


def main() -> None:
    """Serve until told to stop; settings that do not fit, or a port that is taken, are one line and exit code 2."""
    settings = read(FrontSettings)
    logs.configure("front-door", settings.log_format, settings.log_level)
    try:
        listener = web.bind(settings)
    except OSError as error:
        print(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    serving.keep_freed_memory()
    config = serving.config(
        build(settings), server_header=False, proxy_headers=False, timeout_graceful_shutdown=STOP_SECONDS
    )
    uvicorn.Server(config).run(sockets=[listener])


async def _healthz(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})

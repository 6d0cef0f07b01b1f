"""Health and metrics of a process whose work is something else: no FastAPI, whose memory would be for three routes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from concilia_kit import metrics, serving
from concilia_kit.listening import bind_or_end
from concilia_kit.problems import MEDIA_TYPE, Problem
from concilia_kit.settings import ServiceSettings

Check = Callable[[], object]
"""Raises where a dependency does not answer."""


def application(service: str, *, ready: Mapping[str, Check], registry: CollectorRegistry) -> Starlette:
    """`/healthz`, `/readyz` and `/metrics` as every service has them; `service` is a label of HTTP's metrics."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        states, is_ready = await run_in_threadpool(readiness, ready)
        return JSONResponse(states, 200 if is_ready else 503)

    async def show_metrics(_request: Request) -> Response:
        return Response(
            await run_in_threadpool(metrics.exposition, registry), headers={"Content-Type": metrics.CONTENT_TYPE}
        )

    async def nothing_else(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, f"http_{error.status_code}")
        problem = Problem(str(error.detail), status=error.status_code, code=code)
        return JSONResponse(problem.document(), error.status_code, dict(error.headers or {}), MEDIA_TYPE)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
        ],
        middleware=[Middleware(metrics.HttpMetrics, service=service, registry=registry)],
        exception_handlers={HTTPException: nothing_else},
    )


def serve_beside(app: Starlette, settings: ServiceSettings) -> None:
    """Serve from a daemon thread. A port that cannot be had ends the process with one line and exit code 2."""
    listener = bind_or_end(settings)
    serving.settle_memory()
    server = uvicorn.Server(serving.config(app))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="health", daemon=True).start()


def readiness(ready: Mapping[str, Check]) -> tuple[dict[str, str], bool]:
    """Each dependency by name, 'ok' or what is wrong with it; and whether all are there."""
    states: dict[str, str] = {}
    for name, check in ready.items():
        try:
            check()
            states[name] = "ok"
        except Exception as error:  # whatever a dependency raises, the answer is the same
            states[name] = type(error).__name__
    return states, all(state == "ok" for state in states.values())

"""What every FastAPI service does the same: problem+json for every error, request ids, health, metrics, who is calling.

Source: RFC 9457 (problem details), RFC 6750 (bearer tokens).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import anyio
import anyio.to_thread
import fastapi
import uvicorn
from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from concilia_kit import connections, describing, logs, metrics, serving
from concilia_kit.admission import RETRY_SECONDS, Admission, Places
from concilia_kit.bodies import MAX_BODY, BodyLimit
from concilia_kit.caching import NotKept
from concilia_kit.health import Check, readiness
from concilia_kit.listening import bind as bind
from concilia_kit.listening import bind_or_end
from concilia_kit.problems import MEDIA_TYPE, Forbidden, Problem, Unauthorized, Unavailable
from concilia_kit.refusals import Refusals
from concilia_kit.roles import Role
from concilia_kit.settings import ServiceSettings, networks
from concilia_kit.tokens import Principal, TokenVerifier

bearer = HTTPBearer(auto_error=False, description="access token of the auth service")
_log = logs.get(__name__)

LAST_ANSWERS_SECONDS = 8
"""How long answers under way may take after a service was told to stop; containers are given ten."""

_HEALTH_THREADS = 4
_RUSH = 50  # connections
_TICKS = 20  # of a tenth of a second
_LATER = frozenset({429, 502, 503, 504})

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def application(
    title: str,
    *,
    ready: Mapping[str, Check],
    verifier: TokenVerifier | None = None,
    lifespan: Lifespan | None = None,
    streamed: tuple[str, ...] = (),
    registry: CollectorRegistry | None = None,
    max_body: int = MAX_BODY,
) -> FastAPI:
    """A FastAPI application with the behaviour all services share.

    `ready` names what the service depends on; each check raises where its dependency does not answer.
    Bodies are bounded to `max_body` bytes (see `bodies`) but below the paths in `streamed`, which bound their own. So
    is what is done at one time (see `admission`), health and metrics excepted. `registry` has the service's own
    metrics; `/metrics` shows them and those of HTTP, whose label `service` is the title's last words.
    What is refused for who asks is logged by `app.state.refusals`; nobody keeps an answer unless its route says so.
    `app.state.closing` is set as soon as the service was told to stop: an answer that has no end of its own ends then.
    """
    known = registry or metrics.registry()
    app = FastAPI(
        title=title,
        version="1",
        lifespan=lifespan,
        docs_url=None,  # a page for it would bring scripts of a network of others into the pages' own origin
        redoc_url=None,
    )
    describing.complete(app)
    app.state.verifier = verifier
    app.state.closing = asyncio.Event()
    refusals = app.state.refusals = Refusals()
    service = _service_name(title)
    app.state.places = Places(service, known)
    app.add_middleware(BodyLimit, limit=max_body, streamed=streamed)
    app.add_middleware(Admission, places=app.state.places, streamed=streamed)
    app.add_middleware(CorrelationIdMiddleware, header_name="X-Request-ID", update_request_header=True)
    app.add_middleware(NotKept)
    # The last one added is the first to see a request, and so counts what the others refuse.
    app.add_middleware(metrics.HttpMetrics, service=service, registry=known)
    app.add_exception_handler(Problem, _answering(refusals))
    app.add_exception_handler(RequestValidationError, _answering_invalid(refusals))
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(OperationalError, _on_database_error)
    app.add_exception_handler(PoolTimeout, _on_database_error)
    app.add_exception_handler(Exception, _on_crash)

    # Those that answer requests may all wait for what does not answer, which is the moment to say so.
    threads = anyio.CapacityLimiter(_HEALTH_THREADS)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "what is missing", "model": dict[str, str]}})
    async def readyz(response: fastapi.Response) -> dict[str, str]:
        """Each dependency by name, 'ok' or what is wrong; 503 where one is missing."""
        states, is_ready = await anyio.to_thread.run_sync(readiness, ready, limiter=threads)
        if not is_ready:
            response.status_code = 503
            response.headers["Retry-After"] = str(RETRY_SECONDS)
        return states

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> fastapi.Response:
        """For Prometheus; like health, open on the network of the services and not behind the front door."""
        text = await anyio.to_thread.run_sync(metrics.exposition, known, limiter=threads)
        return fastapi.Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})

    return app


def run(app: FastAPI, settings: ServiceSettings) -> None:
    """Serve until told to stop. Logging is already configured, uvicorn's records go the same way.

    A port that cannot be had ends the process with one line and exit code 2.
    """
    _Server(app, settings).run(sockets=[_listener(app, settings)])


@contextlib.contextmanager
def running_beside(app: FastAPI, settings: ServiceSettings) -> Iterator[None]:
    """Serve from a thread while the block runs, which the main thread is busy with. Should serving end before, the
    process is told to stop (SIGTERM): half of it would be worse than none.

    A port that cannot be had ends the process with one line and exit code 2.
    """
    listener, server = _listener(app, settings), _Server(app, settings)

    def serve() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            if not server.should_exit:
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=serve, name="api")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _listener(app: FastAPI, settings: ServiceSettings) -> socket.socket:
    listener = bind_or_end(settings)
    serving.settle_memory()
    connections.raise_limit()
    app.state.places.bound(settings.max_requests, settings.max_transfers)
    app.root_path = settings.root_path  # for the links in /docs; paths arrive without it
    return listener


class _Server(uvicorn.Server):
    """Tells the application that it closes before waiting for answers under way; gives memory back after a rush."""

    def __init__(self, app: FastAPI, settings: ServiceSettings) -> None:
        trusted = networks(settings.trusted_proxies)
        super().__init__(
            serving.config(app, timeout_graceful_shutdown=LAST_ANSWERS_SECONDS, forwarded_allow_ips=trusted)
        )
        self._app = app
        self._most = 0

    async def on_tick(self, counter: int) -> bool:
        connected = len(self.server_state.connections)
        self._most = max(self._most, connected)
        if counter % _TICKS == 0 and self._most >= _RUSH and connected <= self._most // 2:
            self._most = connected
            asyncio.get_running_loop().run_in_executor(None, serving.give_memory_back)  # nothing waits for it
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.closing.set()
        await super().shutdown(sockets)


def _service_name(title: str) -> str:
    return title.lower().removeprefix("concilia ").replace(" ", "-")


async def principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Principal:
    """The caller. Raises `Unauthorized`."""
    if credentials is None:
        raise Unauthorized(
            "an access token is needed: 'Authorization: Bearer …'", headers={"WWW-Authenticate": "Bearer"}
        )
    verifier: TokenVerifier = request.app.state.verifier
    # A thread only where somebody must be asked: handing over to one costs more than a look at what is known.
    known = verifier.verify_at_once(credentials.credentials)
    if known is None:
        known = await run_in_threadpool(verifier.verify, credentials.credentials)
    request.state.caller = known
    return known


def require(*roles: Role) -> Callable[[Request, Principal], Awaitable[Principal]]:
    """A dependency: the caller, who must hold one of `roles` (any role where none is named)."""
    accepted = frozenset(roles or Role)

    async def check(request: Request, caller: Annotated[Principal, Depends(principal)]) -> Principal:
        if not caller.roles & accepted:
            request.state.needed = accepted
            names = ", ".join(sorted(accepted))
            raise Forbidden(f"this needs one of the roles: {names}", code="role_missing")
        return caller

    return check


def _problem_response(problem: Problem) -> JSONResponse:
    headers = problem.headers
    if problem.problem_status in _LATER:  # it is not for ever, and nobody should ask again at once
        headers = {"Retry-After": str(RETRY_SECONDS), **headers}
    if problem.problem_status == 401:  # must say how to come again (RFC 9110, section 15.5.2)
        headers = {"WWW-Authenticate": "Bearer", **headers}
    return JSONResponse(problem.document(), problem.problem_status, headers, MEDIA_TYPE)


def _answering(refusals: Refusals) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def on_problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        refusals.of_request(request, error)
        if error.problem_status >= 500:
            _log.warning("problem", path=request.url.path, code=error.problem_code, detail=error.detail)
        return _problem_response(error)

    return on_problem


def _answering_invalid(refusals: Refusals) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # Pydantic's own report repeats the input, which may be a secret or a picture.
        errors: list[dict[str, Any]] = [
            {"where": ".".join(map(str, item["loc"])), "what": item["msg"]} for item in error.errors()[:20]
        ]
        said = {"errors": errors}
        problem = Problem("the request does not fit its schema", status=422, code="invalid_request", extra=said)
        refusals.of_request(request, problem)
        return _problem_response(problem)

    return on_invalid


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = describing.allowed(request)
    return _problem_response(
        Problem(
            str(error.detail),
            status=error.status_code,
            code=codes.get(error.status_code, f"http_{error.status_code}"),
            headers=headers,
        )
    )


async def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    # The reason alone: the statement and its parameters are nobody's business, and a traceback says nothing more.
    _log.error("database does not answer", path=request.url.path, reason=str(getattr(error, "orig", error))[:200])
    return _problem_response(Unavailable("the database does not answer", code="database_unavailable"))


async def _on_crash(request: Request, error: Exception) -> JSONResponse:
    _log.error("unexpected error", path=request.url.path, exc_info=error)
    return _problem_response(Problem("an unexpected error; the log of this service has it"))

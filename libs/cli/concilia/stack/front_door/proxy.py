"""Requests to the services: passed on and answered as they stream, nothing gathered on the way.

What is passed on: the method, the path below `/api/{service}`, the query, the body, and every header but those between
two neighbours (RFC 9110, section 7.6.1), those that say where a request came from, which are written anew, and cookies,
which are auth's alone. The libraries that do this were alphas or no longer kept when this was written.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import anyio
import httpx
from concilia_kit import logs
from concilia_kit.bodies import BodyTooLarge
from concilia_kit.problems import MEDIA_TYPE, NotFound, Problem, Unavailable
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

API_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer of a service."""

COOKIES_OF = "auth"

_NEIGHBOURS = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "expect"}
)
_WRITTEN_ANEW = frozenset({"x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"})
_OF_THIS_SERVER = frozenset({"date", "server"})
_REQUEST_ID = re.compile(r"[0-9A-Za-z-]{8,64}")
_PATH = re.compile(r"/api/([a-z]+)(/.*)", re.DOTALL)
_HIDDEN = re.compile(r"/api/[a-z]+/+metrics/*")  # metrics are for the network of the services, not for the world
_CONNECT_SECONDS = 3.0
_WRITE_SECONDS = 120.0
_log = logs.get(__name__)


@dataclass(frozen=True)
class Limits:
    """Bytes of a request's body (None: the service bounds it) and seconds that a service may keep silent."""

    body: int | None = 64 * 2**10
    silence: float = 120.0


LIMITS = (
    (re.compile(r"/api/model/v1/initial-models"), Limits(silence=660)),  # weights may have to be downloaded first
    (re.compile(r"/api/model/v1/predictions"), Limits(body=12 * 2**20)),
    (re.compile(r"/api/model/v1/artifacts/.*"), Limits(body=None)),
    (re.compile(r"/api/model/v1/uploads(/.*)?"), Limits(body=None)),
    (re.compile(r"/api/auth/v1/csp-reports"), Limits(body=16 * 2**10)),
    (re.compile(r"/api/aggregator/v1/jobs/[^/]+/stream"), Limits(silence=3600)),
    (re.compile(r"/api/aggregator/v1/jobs/[^/]+/rounds/[0-9]+/masking/.*"), Limits(body=128 * 2**10)),  # shares
)
"""Where the limits are not the usual ones: a pattern of the whole path, and what holds there."""


class ReverseProxy:
    """ASGI application for paths below `/api/`, to the `services`, addresses by name. Opens no connection at first."""

    def __init__(self, services: Mapping[str, str]) -> None:
        self._services = {name: httpx.URL(url) for name, url in services.items()}
        # A transport alone: no cookie jar, no redirects, no proxy of the environment, no headers of its own.
        # A connection is let go before uvicorn, which waits 5 s, could close it under a new request.
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=2.0),
        )

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on. Where its caller leaves, the service sees it leave."""
        taken = anyio.Event()

        async def watched() -> None:
            await taken.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watched)
            try:
                await self._exchange(Request(scope, receive), send, taken)
            except Problem as problem:
                answer = JSONResponse(problem.document(), problem.problem_status, API_HEADERS, MEDIA_TYPE)
                await answer(scope, receive, send)
            except ClientDisconnect:
                pass
            group.cancel_scope.cancel()

    async def _exchange(self, request: Request, send: Send, taken: anyio.Event) -> None:
        """Raises `Problem` as long as nothing was answered."""
        service, onward = self._onward(request, taken)
        try:
            answer = await self._transport.handle_async_request(onward)
        except httpx.TransportError as error:
            _log.warning("service does not answer", service=service, error=type(error).__name__)
            detail = f"the {service} service does not answer; try again"
            raise Unavailable(detail, code="service_unavailable") from error
        try:
            headers = [(name.lower(), value) for name, value in _answered(answer, service)]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            async for chunk in answer.stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except httpx.TransportError as error:
            # The answer stays unfinished, which tells the caller; the server then closes the connection.
            _log.warning("service broke off", service=service, error=type(error).__name__)
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()

    def _onward(self, request: Request, taken: anyio.Event) -> tuple[str, httpx.Request]:
        """The service asked for and the request to it; `taken` is set once the caller's body was taken whole."""
        path = request.scope["path"]
        raw = request.scope.get("raw_path") or quote(path).encode()
        found = _PATH.fullmatch(raw.decode("ascii", "replace"))
        service = found[1] if found else ""
        # Segments of dots would name another path to the service than the one looked at here.
        if not found or service not in self._services or {".", ".."} & set(path.split("/")) or _HIDDEN.fullmatch(path):
            raise NotFound("there is nothing at this address")
        limits = next((limits for pattern, limits in LIMITS if pattern.fullmatch(path)), Limits())
        query = request.scope["query_string"]
        target = found[2].encode() + (b"?" + query if query else b"")
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        if not has_body:
            taken.set()
        elif limits.body is not None and int(request.headers.get("content-length", 0)) > limits.body:
            raise _too_large(limits.body)
        return service, httpx.Request(
            request.method,
            self._services[service].copy_with(raw_path=target),
            headers=_asked(request, service),
            content=_body(request, limits.body, taken) if has_body else None,
            extensions={
                "timeout": {
                    "connect": _CONNECT_SECONDS,
                    "read": limits.silence,
                    "write": _WRITE_SECONDS,
                    "pool": _CONNECT_SECONDS,
                }
            },
        )


def _asked(request: Request, service: str) -> list[tuple[bytes, bytes]]:
    dropped = _NEIGHBOURS | _WRITTEN_ANEW | _named_by_connection(request.headers)
    if service != COOKIES_OF:
        dropped |= {"cookie"}
    given = request.headers.get("x-request-id", "")
    return [
        *((name, value) for name, value in request.headers.raw if name.decode("latin-1") not in dropped),
        (b"x-request-id", (given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex).encode()),
        (b"x-forwarded-for", (request.client.host if request.client else "").encode()),
        (b"x-forwarded-proto", request.url.scheme.encode()),
    ]


def _answered(answer: httpx.Response, service: str) -> list[tuple[bytes, bytes]]:
    dropped = _NEIGHBOURS | _OF_THIS_SERVER | _named_by_connection(answer.headers) | {*map(str.lower, API_HEADERS)}
    if service != COOKIES_OF:
        dropped |= {"set-cookie"}
    kept = [(name, value) for name, value in answer.headers.raw if name.decode("latin-1").lower() not in dropped]
    return kept + [(name.encode(), value.encode()) for name, value in API_HEADERS.items()]


def _named_by_connection(headers: Headers | httpx.Headers) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in headers.get("connection", "").split(","))


async def _body(request: Request, limit: int | None, taken: anyio.Event) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if limit is not None and size > limit:
            raise _too_large(limit)
        yield chunk
    taken.set()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request is larger than this address takes, {limit} bytes")

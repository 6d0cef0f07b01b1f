"""What every service answers when something is wrong: problem+json, bounded bodies, no input repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa
from asgi_lifespan import LifespanManager
from concilia_kit import database, web
from concilia_kit.bodies import MAX_BODY
from concilia_kit.problems import MEDIA_TYPE, Conflict
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.exc import TimeoutError as PoolTimeout


class Body(BaseModel):
    number: int


def build() -> FastAPI:
    def missing() -> None:
        raise ConnectionError

    app = web.application("Concilia test", ready={"there": lambda: None, "gone": missing})
    engine = database.engine("postgresql+psycopg://nobody@127.0.0.1:1/none")

    @app.post("/echo")
    def echo(body: Body) -> Body:
        return body

    @app.get("/conflict")
    def conflict() -> None:
        raise Conflict("no", code="taken", extra={"by": "x"})

    @app.get("/database")
    def ask() -> None:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    @app.get("/connections")
    def connections() -> None:
        raise PoolTimeout("QueuePool limit")

    @app.get("/crash")
    def crash() -> None:
        raise RuntimeError("secret")

    return app


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = build()
    async with (
        LifespanManager(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test"
        ) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/conflict", b"", 409, "taken"),
        ("GET", "/nowhere", b"", 404, "not_found"),
        ("DELETE", "/echo", b"", 405, "method_not_allowed"),
        ("POST", "/echo", b'{"number": "topsecret"}', 422, "invalid_request"),
        ("POST", "/echo", b"{", 422, "invalid_request"),
        ("POST", "/echo", b'{"number": 1, "x": "' + b"a" * MAX_BODY + b'"}', 413, "body_too_large"),
        ("GET", "/database", b"", 503, "database_unavailable"),
        ("GET", "/connections", b"", 503, "database_unavailable"),
        ("GET", "/crash", b"", 500, "internal_error"),
    ],
)
async def test_errors_are_problems(
    http: httpx.AsyncClient, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    answer = await http.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert "secret" not in answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert ("X-Request-ID" in answer.headers) == (status != 500)  # what crashes is answered outside all middleware


async def test_readiness_names_what_is_missing(http: httpx.AsyncClient) -> None:
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"there": "ok", "gone": "ConnectionError"})
    assert (await http.get("/healthz")).json() == {"status": "ok"}

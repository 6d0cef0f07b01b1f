"""Who is refused is in the log, in one bounded line; and no answer is kept by whoever is between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
import structlog
from concilia_kit import web
from concilia_kit.problems import Conflict, Forbidden, Problem, Unauthorized
from concilia_kit.refusals import OF_A_SOURCE, OF_ALL, Refusals
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from fastapi import Body, Depends, FastAPI, Response
from structlog.testing import LogCapture

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
HOSTILE = 'x"}\n{"event": "signed in"'


class Named:
    """A verifier for which a token is the names of its roles."""

    def verify_at_once(self, _token: str) -> None:
        return None

    def verify(self, token: str) -> Principal:
        if not token.startswith("roles:"):
            raise Unauthorized("the access token is not valid here", code="token_invalid")
        return Principal(ADDRESS, frozenset(map(Role, filter(None, token.removeprefix("roles:").split(",")))))


def build() -> FastAPI:
    app = web.application("Concilia test", ready={}, verifier=Named())  # type: ignore[arg-type]

    @app.get("/things/{thing}")
    def thing(thing: str, _: Annotated[Principal, Depends(web.require(Role.ADMIN, Role.AUDITOR))]) -> str:
        return thing

    @app.get("/own")
    def own(_: Annotated[Principal, Depends(web.principal)]) -> None:
        raise Forbidden("not yours", code="not_yours")

    @app.get("/often")
    def often() -> None:
        raise Problem("too often", status=429, code="rate_limited")

    @app.get("/told")
    def told() -> None:
        problem = Unauthorized("no")
        problem.is_logged = True
        raise problem

    @app.post("/numbers")
    def numbers(number: Annotated[int, Body(embed=True)]) -> int:
        return number

    @app.get("/conflict")
    def conflict() -> None:
        raise Conflict("no")

    @app.get("/kept")
    def kept(response: Response) -> None:
        response.headers["Cache-Control"] = "private, max-age=60"

    return app


@pytest.fixture
def lines() -> Any:
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[capture])
    yield capture.entries
    structlog.configure(**before)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build(), client=("192.0.2.7", 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_refusals_say_who_was_refused_what_and_why(client: httpx.AsyncClient, lines: list[Any]) -> None:
    await client.get("/things/secret.png?query", headers=bearer("roles:hospital"))
    await client.get("/own", headers=bearer("roles:"))
    await client.get("/things/secret.png", headers=bearer(HOSTILE.replace("\n", "")))
    await client.get("/often")
    common = {"source": "192.0.2.7", "method": "GET", "log_level": "warning", "event": "refused"}
    at = {"route": "/things/{thing}"}
    assert lines == [
        common
        | at
        | {"status": 403, "code": "role_missing", "address": ADDRESS, "roles": ["hospital"]}
        | {"needed": ["admin", "auditor"]},
        common | {"status": 403, "code": "not_yours", "route": "/own", "address": ADDRESS, "roles": []},
        common | at | {"status": 401, "code": "token_invalid"},
        common | {"status": 429, "code": "rate_limited", "route": "/often"},
    ]
    assert "secret" not in str(lines)


async def test_refusals_who_brings_nothing_is_told_quietly(client: httpx.AsyncClient, lines: list[Any]) -> None:
    await client.get("/things/1")
    await client.get("/own", headers={"Cookie": "a=b"})
    assert [(line["code"], line["log_level"]) for line in lines] == [
        ("unauthorized", "info"),
        ("unauthorized", "warning"),
    ]


async def test_refusals_of_what_a_route_does_not_take_repeat_nothing(
    client: httpx.AsyncClient, lines: list[Any]
) -> None:
    await client.post("/numbers", json={"number": HOSTILE, HOSTILE: "secret"})
    assert [(line["code"], line["status"], line["log_level"]) for line in lines] == [("invalid_request", 422, "info")]
    assert "secret" not in str(lines)
    assert "signed in" not in str(lines)


async def test_refusals_nothing_else_is_one(client: httpx.AsyncClient, lines: list[Any]) -> None:
    for path in ("/told", "/conflict", "/nowhere", "/healthz"):
        await client.get(path)
    assert (await client.get("/things/1", headers=bearer("roles:admin"))).status_code == 200
    assert lines == []


async def test_refusals_the_lines_of_a_source_are_bounded(client: httpx.AsyncClient, lines: list[Any]) -> None:
    for _ in range(OF_A_SOURCE + 5):
        await client.get("/often")
    assert len(lines) == OF_A_SOURCE


def test_refusals_are_bounded_by_source_and_in_all_and_what_was_left_out_is_counted(lines: list[Any]) -> None:
    now = [0.0]
    log = Refusals(clock=lambda: now[0])
    for number in range(OF_ALL + 50):
        log.write("refused", f"source {number}")
    assert len(lines) == OF_ALL
    now[0] = 59.9
    log.write("refused", "another")
    assert len(lines) == OF_ALL
    now[0] = 60.0
    log.write("refused", "another")
    log.write("refused", "another")
    assert [line.get("omitted") for line in lines[OF_ALL:]] == [51, None]


async def test_answers_are_not_kept_unless_their_route_says_so(client: httpx.AsyncClient) -> None:
    for path, kept in (
        ("/things/1", "no-store"),
        ("/nowhere", "no-store"),
        ("/healthz", "no-store"),
        ("/kept", "private, max-age=60"),
    ):
        answer = await client.get(path, headers=bearer("roles:admin"))
        assert answer.headers.get_list("Cache-Control") == [kept], path

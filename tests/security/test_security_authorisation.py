"""Who may call what: the one table in `docs/authorisation.md` beside every route of every service, tried by each role.

Each service's own routes answer here, with nothing behind them: whoever is let in gets an error of another kind, or an
answer that means nothing. What is looked at is who is not let in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from concilia_aggregator import api as aggregator_api
from concilia_aggregator.masking import api as masking_api
from concilia_auth import api as auth_api
from concilia_auth import browser
from concilia_chain import api as chain_api
from concilia_kit import web
from concilia_kit.problems import Problem, Unauthorized
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from concilia_model import api as model_api
from fastapi import FastAPI

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "authorisation.md"
ORIGIN = "http://concilia.test"
CALLER = "0x" + 20 * "11"
ROUTERS = {
    "auth": (auth_api.router, auth_api.well_known),
    "model": (model_api.router,),
    "aggregator": (aggregator_api.router, masking_api.router),
    "chain": (chain_api.router,),
}
ANYBODY, SESSION, BROWSER, EITHER, SIGNED_IN = "anybody", "session", "browser session", "either session", "signed in"
MEMBERS = "any role"
VALUES = {
    "digest": "ab" * 32,
    "job": "ab" * 32,
    "round": "1",
    "round_number": "1",
    "address": CALLER,
    "hospital": CALLER,
    "role": "hospital",
    "session": "ab" * 32,
    "upload": "ab" * 16,
    "verification": "ab" * 16,
}


class Rule(NamedTuple):
    """A row: who may call a route, and which of what it names is theirs."""

    who: str
    only: str

    def lets_in(self, roles: frozenset[Role]) -> bool:
        """Whether a token with these roles is let in."""
        if self.who in {ANYBODY, SIGNED_IN}:
            return True
        return bool(roles) if self.who == MEMBERS else any(role in self.who.split(", ") for role in roles)


def table() -> dict[tuple[str, str, str], Rule]:
    rows = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in ROUTERS:
            key = (cells[0], cells[1], cells[2])
            assert key not in rows, f"{key} is there twice"
            rows[key] = Rule(cells[3], cells[4])
    return rows


class Named:
    """A verifier for which a token is the names of its roles."""

    def verify_at_once(self, token: str) -> Principal | None:
        return self.verify(token)

    def verify(self, token: str) -> Principal:
        if not token.startswith("roles:"):
            raise Unauthorized("no token")
        return Principal(CALLER, frozenset(map(Role, filter(None, token.removeprefix("roles:").split(",")))))


class Nothing:
    """Stands for all that is behind the routes: whatever is called of it, and of its attributes, refuses."""

    origin = ORIGIN

    def __getattr__(self, _name: str) -> Nothing:
        return self

    def __call__(self, *_: object, **__: object) -> None:
        raise Problem("there is nothing behind this", status=418, code="nothing")

    def __enter__(self) -> None:
        self()

    def __exit__(self, *_: object) -> None: ...


class State(Nothing):
    """An application's state of nothing, but for what it keeps."""

    def __init__(self, app: FastAPI) -> None:
        self.verifier, self.places, self.closing = Named(), app.state.places, app.state.closing


def application(service: str) -> FastAPI:
    app = web.application(f"Concilia {service}", ready={})
    for router in ROUTERS[service]:
        app.include_router(router)
    app.state = State(app)  # type: ignore[assignment]
    return app


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of all that the application's own description has."""
    return sorted((method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods)


ALL = [(service, method, path) for service in ROUTERS for method, path in routes(application(service))]


@pytest.fixture(scope="module")
def applications() -> dict[str, FastAPI]:
    return {service: application(service) for service in ROUTERS}


def test_the_table_has_every_route_of_every_service_and_no_other() -> None:
    assert set(table()) == set(ALL)


@pytest.mark.parametrize("service", ROUTERS)
def test_the_services_are_built_of_these_routes(service: str) -> None:
    text = (ROOT / f"services/{service}/concilia_{service}/main.py").read_text()
    assert len(re.findall(r"\.include_router\(", text)) == len(ROUTERS[service])


@pytest.mark.parametrize("route", ALL, ids=" ".join)
async def test_a_route_lets_in_whom_the_table_names_and_nobody_else(
    route: tuple[str, str, str], applications: dict[str, FastAPI]
) -> None:
    service, method, path = route
    rule = table()[route]
    where = re.sub(r"\{(\w+)\}", lambda match: VALUES[match[1]], path)
    transport = httpx.ASGITransport(applications[service], raise_app_exceptions=False)
    given: dict[str, Any] = {} if method in {"GET", "HEAD", "OPTIONS"} else {"json": {}}

    async def answer(token: str | None, **headers: str) -> tuple[int, str]:
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            told = await client.request(method, where, headers=headers, **given)
        is_problem = told.headers.get("content-type", "").startswith("application/problem") and told.content
        return told.status_code, told.json()["code"] if is_problem else ""

    async def is_out(token: str | None, **headers: str) -> bool:
        return (await answer(token, **headers))[0] in {401, 403}

    if rule.who == ANYBODY:
        assert not await is_out(None)
        return
    assert await is_out(None)
    if rule.who in {SESSION, BROWSER, EITHER}:
        cookie = {"cookie": f"{browser.COOKIE}=x", "origin": ORIGIN, "x-csrf-token": browser.csrf_token("x")}
        assert await is_out("x") is (rule.who == BROWSER)
        assert await is_out(None, **cookie) is (rule.who == SESSION)
        return
    assert (await answer("forged"))[0] == 401
    for roles in (frozenset(), *(frozenset({role}) for role in Role)):
        status, code = await answer("roles:" + ",".join(sorted(roles)))
        is_refused = status == 403 and (code or method == "HEAD")
        assert bool(is_refused) is not rule.lets_in(roles), f"{sorted(roles)}: {status} {code}"

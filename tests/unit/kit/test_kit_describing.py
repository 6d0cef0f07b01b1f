"""A description that leaves no answer out, and 405 that names every method of its address."""

from __future__ import annotations

from typing import Annotated

import httpx
import pytest
from concilia_kit import web
from concilia_kit.describing import problems
from concilia_kit.problems import Conflict, NotFound, Problem, Unauthorized
from concilia_kit.strict import Integer
from concilia_kit.tokens import Principal
from concilia_kit.wire.base import Wire
from fastapi import APIRouter, Depends, FastAPI
from pydantic import Field


class ThingGone(NotFound):
    """There is no such thing."""

    code = "thing_gone"


class ThingTaken(Conflict):
    """Another has it."""

    code = "thing_taken"


class Thing(Wire):
    """What the routes here take."""

    size: Integer = Field(ge=0, lt=2**256)


def application() -> FastAPI:
    app = web.application("Concilia things", ready={})
    router, nested = APIRouter(prefix="/v1"), APIRouter(prefix="/nested")

    @router.get("/things/{thing}", responses=problems(ThingGone, ThingTaken))
    def read(thing: str) -> dict[str, str]:
        raise ThingGone("there is none")

    @router.put("/things/{thing}", status_code=204)
    def write(thing: str, given: Thing) -> None: ...

    @router.delete("/things/{thing}", status_code=204)
    def end(thing: str, _: Annotated[Principal, Depends(web.principal)]) -> None: ...

    @nested.post("/busy")
    def busy() -> None:
        raise Problem("too much", status=429, code="busy")

    @nested.get("/busy")
    def nobody() -> None:
        raise Unauthorized("nobody")

    router.include_router(nested)
    app.include_router(router)
    return app


@pytest.fixture
def app() -> FastAPI:
    return application()


@pytest.fixture
def http(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://things.test")


def answers(app: FastAPI, method: str, path: str) -> dict[str, str]:
    described = app.openapi()["paths"][path][method]["responses"]
    return {status: answer["description"] for status, answer in described.items()}


def test_an_operation_names_its_own_problems_and_those_of_its_kind(app: FastAPI) -> None:
    told = answers(app, "get", "/v1/things/{thing}")
    assert told["404"] == "`thing_gone`, `not_found`"
    assert told["409"] == "`thing_taken`"
    assert told["422"] == "`invalid_request`"
    assert set(told) == {"200", "400", "404", "408", "409", "422", "429", "500", "503"}


def test_any_operation_may_be_asked_in_no_http(app: FastAPI) -> None:
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            assert "`request_malformed`" in operation["responses"]["400"]["description"]
            assert "`head_too_slow`" in operation["responses"]["408"]["description"]


def test_what_takes_a_body_says_what_may_be_wrong_with_it(app: FastAPI) -> None:
    told = answers(app, "put", "/v1/things/{thing}")
    assert {"400", "408", "413", "422"} <= set(told)
    assert not {"401", "403"} & set(told)


def test_what_needs_a_token_says_so(app: FastAPI) -> None:
    assert {"401", "403"} <= set(answers(app, "delete", "/v1/things/{thing}"))


def test_health_is_never_too_busy(app: FastAPI) -> None:
    assert set(answers(app, "get", "/healthz")) == {"200", "400", "408", "500"}
    assert answers(app, "get", "/readyz")["503"].startswith("what is missing")


def test_every_problem_has_one_schema_and_fastapis_own_is_gone(app: FastAPI) -> None:
    document = app.openapi()
    assert "HTTPValidationError" not in str(document)
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and "what is missing" not in answer["description"]:
                    schema = answer["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}


def test_a_bound_is_described_exactly(app: FastAPI) -> None:
    size = app.openapi()["components"]["schemas"]["Thing"]["properties"]["size"]
    assert size["exclusiveMaximum"] == 2**256
    assert isinstance(size["exclusiveMaximum"], int)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/things/1", "DELETE, GET, PUT"),
        ("OPTIONS", "/v1/things/1", "DELETE, GET, PUT"),
        ("DELETE", "/v1/nested/busy", "GET, POST"),
        ("POST", "/healthz", "GET"),
        ("PUT", "/metrics", "GET"),
    ],
)
async def test_405_names_every_method_of_the_address(
    http: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.json()["code"] == "method_not_allowed"


async def test_401_says_how_to_come_again_and_429_says_when(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nested/busy")).headers["www-authenticate"] == "Bearer"
    assert int((await http.post("/v1/nested/busy")).headers["retry-after"]) >= 1

"""What the API lets whom do, through the application as it is built."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from asgi_lifespan import LifespanManager
from concilia_aggregator import main, rounds
from concilia_aggregator.settings import AggregatorSettings
from concilia_aggregator.store import state_of
from concilia_aggregator.wakeup import QUEUE
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from concilia_kit.wire.jobs import JobSpec, Phase, job_stream
from eth_account import Account
from fastapi import FastAPI

from .conftest import address

JOB, ENDED, NOWHERE = "a" * 64, "b" * 64, "c" * 64


class Named:
    """A verifier for which a token is the name of a role."""

    def verify_at_once(self, token: str) -> Principal | None:
        return self.verify(token)

    def verify(self, token: str) -> Principal:
        return Principal(address(1), frozenset({Role(token)}))


@pytest.fixture
def app(tmp_path: Path, redis_url: str) -> FastAPI:
    password, keystore = tmp_path / "password", tmp_path / "key.json"
    password.write_text("secret")
    keystore.write_text(json.dumps(Account.encrypt(Account.create().key, "secret", kdf="pbkdf2", iterations=1)))
    nowhere = "http://127.0.0.1:1"
    settings = AggregatorSettings(
        port=1,
        database_url=f"sqlite:///{tmp_path}/aggregator.db",
        redis_url=redis_url,
        auth_url=nowhere,
        model_url=nowhere,
        chain_url=nowhere,
        keystore=keystore,
        password_file=password,
        directory=tmp_path / "work",
        tick_seconds=0.05,
    )
    app = main.build_api(settings)
    app.state.verifier = Named()
    spec = JobSpec(name="j", initial="0" * 64)
    app.state.store.add_job(JOB, spec, rounds.begin("0" * 64), address(1))
    app.state.store.add_job(ENDED, spec, rounds.JobState(Phase.STOPPED, "0" * 64), address(1))
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def call(http: httpx.AsyncClient, method: str, path: str, role: str = "admin") -> tuple[int, object]:
    answer = await http.request(method, f"/v1{path}", headers={"Authorization": f"Bearer {role}"})
    return answer.status_code, answer.json() if answer.content else None


async def code(http: httpx.AsyncClient, method: str, path: str, role: str = "admin") -> tuple[int, str]:
    status, document = await call(http, method, path, role)
    assert isinstance(document, dict)
    return status, document["code"]


async def test_pausing_and_resuming(http: httpx.AsyncClient, app: FastAPI) -> None:
    for order, paused in (("pause", True), ("pause", True), ("resume", False), ("resume", False)):
        assert await call(http, "POST", f"/jobs/{JOB}/{order}") == (202, None)
        assert state_of(app.state.store.job(JOB)).paused is paused
        _, view = await call(http, "GET", f"/jobs/{JOB}", "clinician")
        assert isinstance(view, dict)
        assert view["paused"] is paused
    told = [json.loads(fields[b"data"])["paused"] for _, fields in app.state.wakeup._redis.xrange(job_stream(JOB))]
    assert told == [True, False]
    assert app.state.wakeup._redis.llen(QUEUE) > 0


@pytest.mark.parametrize("order", ["pause", "resume", "stop"])
async def test_who_may_pause_what(http: httpx.AsyncClient, order: str) -> None:
    assert await code(http, "POST", f"/jobs/{JOB}/{order}", "auditor") == (403, "role_missing")
    assert await code(http, "POST", f"/jobs/{ENDED}/{order}") == (409, "job_ended")
    assert await code(http, "POST", f"/jobs/{NOWHERE}/{order}") == (404, "job_not_found")


async def test_verifications(http: httpx.AsyncClient, app: FastAPI) -> None:
    path = f"/jobs/{JOB}/verifications"
    assert await code(http, "POST", path, "clinician") == (403, "role_missing")
    assert await code(http, "POST", f"/jobs/{NOWHERE}/verifications") == (404, "job_not_found")
    assert await code(http, "GET", f"/jobs/{NOWHERE}/verifications") == (404, "job_not_found")
    assert await code(http, "GET", f"/verifications/{'0' * 32}") == (404, "verification_not_found")
    assert await code(http, "GET", "/verifications/x") == (422, "invalid_request")
    status, asked = await call(http, "POST", path, "auditor")
    assert isinstance(asked, dict)
    assert (status, asked["state"], asked["fraction"], asked["verdict"]) == (202, "queued", 0, None)
    assert asked["asked_by"] == address(1)
    assert await call(http, "POST", path) == (200, asked)
    assert await call(http, "GET", path, "clinician") == (200, [asked])
    assert await call(http, "GET", f"/verifications/{asked['id']}", "hospital") == (200, asked)
    told = [fields[b"name"] for _, fields in app.state.wakeup._redis.xrange(job_stream(JOB))]
    assert told == [b"verification"]


async def test_the_stream_is_described(http: httpx.AsyncClient) -> None:
    described = (await http.get("/openapi.json")).json()["paths"]["/v1/jobs/{job}/stream"]["get"]
    assert described["security"]
    assert list(described["responses"]["200"]["content"]) == ["text/event-stream"]
    assert [item["name"] for item in described["parameters"]] == ["job", "last-event-id"]

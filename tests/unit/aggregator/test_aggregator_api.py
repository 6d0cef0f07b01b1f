"""What the API lets whom do, through the application as it is built."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_lifespan import LifespanManager
from concilia_aggregator import dispatch, main, rounds
from concilia_aggregator.assignments import Assignments
from concilia_aggregator.orders import Orders
from concilia_aggregator.settings import AggregatorSettings
from concilia_aggregator.store import state_of
from concilia_aggregator.wakeup import QUEUE
from concilia_kit import signing
from concilia_kit.problems import Unavailable
from concilia_kit.roles import Role
from concilia_kit.signing import Domain
from concilia_kit.tokens import Principal
from concilia_kit.wire.changes import job_stream
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.training import EVALUATE_TASK, TRAIN_TASK, Assignment, EvaluationReport, TrainTask, order_of
from eth_account import Account
from fastapi import FastAPI

from .conftest import address

DOMAIN = Domain(chain_id=1, contract="0x" + 39 * "0" + "7")
COORDINATOR = Account.create()
JOB, ENDED, NOWHERE, OTHER = "a" * 64, "b" * 64, "c" * 64, "d" * 64


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
    app.state.assignments = Assignments(app.state.store, Orders(COORDINATOR, lambda: DOMAIN))
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


async def test_a_published_models_card(http: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.ledger = lambda: DOMAIN
    assert await code(http, "GET", f"/jobs/{JOB}/card", "clinician") == (409, "nothing_published")
    assert await code(http, "GET", f"/jobs/{NOWHERE}/card") == (404, "job_not_found")
    spec = JobSpec(name="published", initial="0" * 64)
    app.state.store.add_job(OTHER, spec, rounds.JobState(Phase.FINISHED, "e" * 64), address(1))
    answer = await http.get(f"/v1/jobs/{OTHER}/card", headers={"Authorization": "Bearer clinician"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/markdown; charset=utf-8")
    assert answer.text.startswith("# published\n")
    assert f"contract `{DOMAIN.contract}` on chain 1" in answer.text
    described = (await http.get("/openapi.json")).json()["paths"]["/v1/jobs/{job}/card"]["get"]["responses"]
    assert list(described["200"]["content"]) == ["text/markdown"]
    assert {"404", "409"} <= set(described)

    def unreachable() -> Domain:
        raise Unavailable("the chain service does not answer")

    app.state.ledger = unreachable
    assert await code(http, "GET", f"/jobs/{OTHER}/card") == (503, "unavailable")


async def tasks(http: httpx.AsyncClient, known: str = "", wait: int = 0, of: str = address(1)) -> tuple[int, Any, str]:
    headers = {"Authorization": "Bearer hospital"} | ({"If-None-Match": known} if known else {})
    answer = await http.get(f"/v1/nodes/{of}/tasks", headers=headers, params={"wait": wait})
    return answer.status_code, answer.json() if answer.content else None, answer.headers.get("etag", "")


def move(app: FastAPI, **changes: Any) -> rounds.JobState:
    store = app.state.store
    row = store.job(JOB)
    state = replace(state_of(row), **changes)
    store.save(row, state)
    return state


async def test_a_hospital_is_told_what_it_is_asked_for_as_long_as_it_is_to_be_done(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    assert (await tasks(http))[:2] == (200, [])
    far = int(time.time()) + 1000
    move(app, phase=Phase.BASELINE, deadline=far, cohort=frozenset({address(1)}))
    status, found, tag = await tasks(http)
    assert (status, [each["name"] for each in found]) == (200, [EVALUATE_TASK])
    assert await tasks(http, tag) == (304, None, tag)
    report = EvaluationReport(
        job=JOB,
        round=0,
        model="0" * 64,
        confusion=((0,) * 7,) * 7,
        positives=((0,) * 32,) * 7,
        negatives=((0,) * 32,) * 7,
        loss_sum=0,
        images=0,
        lesions=0,
        overlapping_lesions=0,
        skipped_images=0,
        seconds=0,
    )
    app.state.store.report(address(1), report)
    assert (await tasks(http))[1] == []
    state = move(app, phase=Phase.TRAINING, round=1)
    status, found, tag = await tasks(http)
    assert [TrainTask.model_validate(each["task"]).deadline for each in found] == [far]
    assert found[0]["task"] == dispatch.trainings(JOB, JobSpec(name="j", initial="0" * 64), state, {})[0].task
    asked = Assignment.model_validate(found[0])
    assert signing.signer(order_of(asked.task), DOMAIN, asked.signature) == COORDINATOR.address
    changed = asked.task.model_copy(update={"seed": asked.task.seed + 1})
    assert signing.signer(order_of(changed), DOMAIN, asked.signature) != COORDINATOR.address
    move(app, deadline=int(time.time()) - 1)
    assert (await tasks(http))[1] == []


async def test_who_comes_while_a_round_is_open_is_asked_too_unless_more_were_asked_than_are_needed(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    open_round = {"phase": Phase.TRAINING, "round": 1, "deadline": int(time.time()) + 1000}
    move(app, **open_round, cohort=frozenset({address(2)}))
    assert [each["name"] for each in (await tasks(http))[1]] == [TRAIN_TASK]
    chosen = JobSpec(name="j", initial="0" * 64, over_selection=1.5)
    other = rounds.JobState(head="0" * 64, **open_round, cohort=frozenset({address(2)}))
    app.state.store.add_job(OTHER, chosen, other, address(1))
    assert [each["task"]["job"] for each in (await tasks(http))[1]] == [JOB]


async def test_a_job_that_is_asked_for_again_with_its_key_is_not_made_again(
    http: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.jobs._artifacts, "exists", lambda _digest: True)
    spec = JobSpec(name="mine", initial="0" * 64).model_dump(mode="json")

    async def create(key: str | None, **changes: object) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": "Bearer admin"} | ({"Idempotency-Key": key} if key else {})
        answer = await http.post("/v1/jobs", json={**spec, **changes}, headers=headers)
        return answer.status_code, answer.json()

    together = await asyncio.gather(*(create("key-of-one") for _ in range(8)))
    assert {status for status, _ in together} == {201}
    assert len({job["id"] for _, job in together}) == 1
    status, problem = await create("key-of-one", rounds=9)
    assert (status, problem["code"]) == (422, "idempotency_key_reused")
    others = [await create(key) for key in ("key-of-another", None, None)]
    assert len({job["id"] for _, job in [*together, *others]}) == 4
    assert (await create("short"))[0] == 422


async def test_a_question_stays_open_until_there_is_something_else(http: httpx.AsyncClient, app: FastAPI) -> None:
    _, _, nothing = await tasks(http)
    asked = [asyncio.create_task(tasks(http, nothing, 30)) for _ in range(20)]
    await asyncio.sleep(0.6)
    assert not any(each.done() for each in asked)
    move(app, detail="nothing that concerns a hospital")
    await asyncio.sleep(0.6)
    assert not any(each.done() for each in asked)
    move(app, phase=Phase.TRAINING, round=1, deadline=int(time.time()) + 1000)
    answers = await asyncio.wait_for(asyncio.gather(*asked), 10)
    assert {(status, found[0]["name"]) for status, found, _ in answers} == {(200, TRAIN_TASK)}
    assert (await tasks(http, answers[0][2], 1))[0] == 304


async def test_a_hospital_is_told_its_own_tasks_only(http: httpx.AsyncClient) -> None:
    assert (await tasks(http, of=address(2)))[:1] == (403,)
    assert await code(http, "GET", f"/nodes/{address(1)}/tasks", "admin") == (403, "role_missing")
    assert (await tasks(http, wait=31))[0] == 422


async def test_the_stream_is_described(http: httpx.AsyncClient) -> None:
    described = (await http.get("/openapi.json")).json()["paths"]["/v1/jobs/{job}/stream"]["get"]
    assert described["security"]
    assert list(described["responses"]["200"]["content"]) == ["text/event-stream"]
    assert [item["name"] for item in described["parameters"]] == ["job", "last-event-id"]

"""The routes of secure rounds' rooms, through the application as it is built."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from concilia_aggregator import rounds
from concilia_aggregator.masking import rules
from concilia_aggregator.masking.receiving import Receiving
from concilia_aggregator.masking.rooms import Kind
from concilia_aggregator.tables import RoundRow
from concilia_aggregator.wakeup import QUEUE
from concilia_kit import signing
from concilia_kit.masking import Secrets, advertise
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.masking import SignedKeys, Stage
from eth_account import Account
from fastapi import FastAPI

from .conftest import address
from .secure_world import DOMAIN
from .test_aggregator_api import JOB, NOWHERE, app, call, code, http

__all__ = ["app", "http"]  # fixtures

SECURE, BASE = "e" * 64, "0" * 64
ROOM = f"/jobs/{SECURE}/rounds/1/masking"
SIGNER = Account.create()


@pytest.fixture(autouse=True)
def room(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secure job's first round, open for a hospital that bears the tests' one address."""
    monkeypatch.setattr(signing, "signer", lambda *_: address(1))  # which nobody has a key of
    store = app.state.store
    app.state.masking = Receiving(store, lambda: DOMAIN)
    spec = JobSpec.model_validate({"name": "s", "initial": BASE, "secure": {}})
    cohort = frozenset(address(number) for number in (1, 2, 3))
    state = rounds.JobState(Phase.OPENING, BASE, round=1, deadline=int(time.time()) + 100, cohort=cohort)
    store.add_job(SECURE, spec, state, address(1))
    opened = rounds.JobState(Phase.TRAINING, BASE, round=1, deadline=state.deadline, cohort=cohort)
    store.save(store.job(SECURE), opened, round_=RoundRow(job=SECURE, round=1, base=BASE))
    store.masking.open(SECURE, 1, time.time())


def keys(number: int = 1, **changes: Any) -> SignedKeys:
    fields = {"hospital": address(number), "job": SECURE, "round_": 1, "base": BASE, "samples": 10, **changes}
    made = advertise(Secrets.new(), **fields)
    return SignedKeys(keys=made, signature=signing.sign(made.statement(), DOMAIN, SIGNER))


async def put(http: httpx.AsyncClient, path: str, document: object, role: str = "hospital") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {role}"}
    answer = await http.put(f"/v1{ROOM}{path}", json=document, headers=headers)
    return answer.status_code, answer.json()["code"] if answer.content else ""


async def ask(http: httpx.AsyncClient, known: str = "", wait: int = 0) -> tuple[int, Any, str]:
    headers = {"Authorization": "Bearer hospital"} | ({"If-None-Match": known} if known else {})
    answer = await http.get(f"/v1{ROOM}", headers=headers, params={"wait": wait})
    return answer.status_code, answer.json() if answer.content else None, answer.headers.get("etag", "")


def go_on(app: FastAPI) -> None:
    """The room at its next stage, with other hospitals' keys beside those that came."""
    rooms = app.state.store.masking
    before = rooms.get(SECURE, 1)
    found = {name: SignedKeys.model_validate(each) for name, each in rooms.messages(Kind.KEYS, SECURE, 1).items()}
    found |= {address(number): keys(number) for number in (2, 3)}
    spec = JobSpec.model_validate({"name": "s", "initial": BASE, "secure": {}})
    assert rooms.move(before, rules.close_keys(before, spec, found, time.time()))


async def test_keys_are_taken_once_and_wake_the_job(http: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.wakeup.woken(SECURE)
    before = app.state.wakeup._redis.llen(QUEUE)
    first = keys().model_dump(mode="json")
    for _ in range(2):
        assert await put(http, f"/keys/{address(1)}", first) == (204, "")
    assert app.state.wakeup._redis.llen(QUEUE) > before
    assert await put(http, f"/keys/{address(1)}", keys().model_dump(mode="json")) == (409, "masking_conflict")


async def test_who_may_leave_what_where(http: httpx.AsyncClient) -> None:
    good = keys().model_dump(mode="json")
    assert await put(http, f"/keys/{address(2)}", good) == (403, "not_yours")
    assert await put(http, f"/keys/{address(1)}", good, "admin") == (403, "role_missing")
    assert await put(http, f"/keys/{address(1)}", {}) == (422, "invalid_request")
    assert await put(http, f"/keys/{address(1)}", keys(2).model_dump(mode="json")) == (422, "masking_invalid")
    nothing = {"roster": "0" * 64, "parcels": []}
    assert await put(http, f"/shares/{address(1)}", nothing) == (409, "masking_not_ready")
    consent = {"hospital": address(1), "signature": "0x00"}
    assert await put(http, f"/consents/{address(1)}", consent) == (409, "masking_not_ready")
    revealed = {"hospital": address(1), "roster": "0" * 64, "seeds": {}, "keys": {}}
    assert await put(http, f"/reveals/{address(1)}", revealed) == (409, "masking_not_ready")


async def test_there_is_a_room_of_secure_rounds_only(http: httpx.AsyncClient) -> None:
    assert (await call(http, "GET", ROOM, "hospital"))[0] == 200
    assert await code(http, "GET", ROOM, "admin") == (403, "role_missing")
    assert await code(http, "GET", f"/jobs/{JOB}/rounds/1/masking", "hospital") == (404, "round_not_found")
    assert await code(http, "GET", f"/jobs/{SECURE}/rounds/2/masking", "hospital") == (404, "round_not_found")
    assert await code(http, "GET", f"/jobs/{NOWHERE}/rounds/1/masking", "hospital") == (404, "job_not_found")
    assert (await call(http, "GET", f"/jobs/{SECURE}/rounds/0/masking", "hospital"))[0] == 422


async def test_a_question_stays_open_until_the_room_is_at_another_stage(http: httpx.AsyncClient, app: FastAPI) -> None:
    assert await put(http, f"/keys/{address(1)}", keys().model_dump(mode="json")) == (204, "")
    status, view, tag = await ask(http)
    assert (status, view["stage"], view["roster"]) == (200, Stage.KEYS, None)
    assert (await ask(http, tag))[0] == 304
    asked = [asyncio.create_task(ask(http, tag, 20)) for _ in range(10)]
    await asyncio.sleep(0.6)
    assert not any(each.done() for each in asked)
    go_on(app)
    answers = await asyncio.wait_for(asyncio.gather(*asked), 10)
    assert {(status, view["stage"]) for status, view, _ in answers} == {(200, Stage.SHARES)}
    assert [each["keys"]["hospital"] for each in answers[0][1]["roster"]["members"]] == [
        address(number) for number in (1, 2, 3)
    ]
    assert (await ask(http, answers[0][2], 1))[0] == 304
    assert (await ask(http, wait=31))[0] == 422
    assert await put(http, f"/keys/{address(1)}", keys().model_dump(mode="json")) == (409, "masking_conflict")

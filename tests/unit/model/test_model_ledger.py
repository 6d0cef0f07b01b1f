"""The ledger as this service asks it, in memory and over HTTP by one suite; lineage from what it says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import httpx
import pytest
import uvicorn
from concilia_kit import web
from concilia_kit.problems import Forbidden, Problem, Unavailable
from concilia_kit.wire.chain import EventName, EventPage, LedgerJob, LedgerRound, Reason
from concilia_model import lineage
from concilia_model.errors import NotPublished
from concilia_model.ledger import HttpLedger, Ledger
from fastapi import Query
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB = "0x" + "a1" * 20, "0x" + "b0" * 20
JOB, INITIAL = "1" * 64, "2" * 64


@pytest.fixture
def chain_url(memory_ledger: Any, free_port: Callable[[], int]) -> Iterator[str]:
    """A chain service of one route on a real socket."""
    app = web.application("chain", ready={})

    @app.get("/v1/jobs/{job}")
    def job(job: str) -> LedgerJob:
        if job == "f" * 64:
            raise Forbidden("not you")
        found: LedgerJob = memory_ledger.job(job)
        return found

    @app.get("/v1/jobs/{job}/rounds/{number}")
    def one_round(job: str, number: int) -> LedgerRound:
        found: LedgerRound = memory_ledger.round(job, number)
        return found

    @app.get("/v1/events")
    def events(name: Annotated[list[EventName], Query()], limit: int, before: str | None = None) -> EventPage:
        assert (set(name), limit) == (set(EventName), 1000)
        page: EventPage = memory_ledger.events(before)
        return page

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["memory", "http"])
def ledger(request: pytest.FixtureRequest, memory_ledger: Any) -> Iterator[Ledger]:
    if request.param == "memory":
        yield memory_ledger
        return
    with httpx.Client(base_url=request.getfixturevalue("chain_url")) as client:
        yield HttpLedger(client, retry_seconds=0)


def test_a_recorded_job(ledger: Ledger, memory_ledger: Any, ledger_job: Callable[..., LedgerJob]) -> None:
    recorded = ledger_job(JOB, INITIAL, [("3" * 64, {ALICE: None, BOB: Reason.NON_FINITE}), (None, {})])
    memory_ledger.jobs[JOB] = recorded
    assert ledger.job(JOB) == recorded


def test_a_round_and_events_page_by_page(
    ledger: Ledger, memory_ledger: Any, ledger_job: Callable[..., LedgerJob]
) -> None:
    memory_ledger.jobs[JOB] = ledger_job(JOB, INITIAL, [("3" * 64, {ALICE: None})])
    assert ledger.round(JOB, 1) == memory_ledger.jobs[JOB].rounds[0]
    assert ledger.events() == EventPage(events=(), before=None)
    for number in range(1, 8):
        memory_ledger.say("RoundAborted", JOB, number, 1.0)
    found, before = [], None
    while True:
        page = ledger.events(before)
        found += page.events
        if (before := page.before) is None:
            break
    assert found == memory_ledger.said[::-1]


def test_an_unknown_job(ledger: Ledger) -> None:
    with pytest.raises(Problem) as caught:
        ledger.job("9" * 64)
    assert (caught.value.problem_status, caught.value.problem_code) == (404, "job_not_found")


def test_a_chain_service_that_refuses_or_does_not_answer(chain_url: str, free_port: Callable[[], int]) -> None:
    with httpx.Client(base_url=chain_url) as client, pytest.raises(Unavailable, match="auditor"):
        HttpLedger(client, retry_seconds=0).job("f" * 64)
    with httpx.Client(base_url=f"http://127.0.0.1:{free_port()}") as client, pytest.raises(Unavailable):
        HttpLedger(client, retry_seconds=0).job(JOB)


@given(st.lists(st.none() | st.integers(0, 15), min_size=1, max_size=8))
def test_lineage_is_the_closed_rounds_in_order(ledger_job: Callable[..., LedgerJob], plan: list[int | None]) -> None:
    from_plan = [(None if n is None else f"{n:x}" * 63 + f"{place:x}", n) for place, n in enumerate(plan)]
    job = ledger_job(JOB, INITIAL, [(digest, {ALICE: None}) for digest, _ in from_plan])
    globals_ = tuple(digest for digest, _ in from_plan if digest is not None)
    if not globals_:
        with pytest.raises(NotPublished):
            lineage.of(job, INITIAL)
        return
    line = lineage.of(job, globals_[-1])
    assert (line.initial, line.models) == (INITIAL, globals_)


def test_contributors_are_those_accepted_in_closed_rounds(ledger_job: Callable[..., LedgerJob]) -> None:
    carol, dan = "0x" + "c0" * 20, "0x" + "d0" * 20
    job = ledger_job(
        JOB,
        INITIAL,
        [
            ("3" * 64, {BOB: None, ALICE: Reason.NON_FINITE, carol: Reason.SAMPLE_COUNT}),
            (None, {dan: None}),
            ("4" * 64, {ALICE: None, BOB: None}),
        ],
    )
    contributors = lineage.of(job, "4" * 64).contributors
    assert [address.lower() for address in contributors] == [ALICE, BOB]


def test_what_was_not_published_has_no_lineage(ledger_job: Callable[..., LedgerJob]) -> None:
    rounds = [("3" * 64, {ALICE: None})]
    with pytest.raises(NotPublished):
        lineage.of(ledger_job(JOB, INITIAL, rounds, published=False), "3" * 64)
    with pytest.raises(NotPublished):
        lineage.of(ledger_job(JOB, INITIAL, rounds), INITIAL)

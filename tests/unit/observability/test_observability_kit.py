"""The kit's part: registries apart, labels bounded, a scrape that does not fail with what it tells of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog.testing
from concilia_kit import metrics, web
from concilia_kit.problems import Conflict, NotFound, Problem
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter
from starlette.responses import StreamingResponse

from .conftest import calling


def app_of(title: str, registry: CollectorRegistry | None = None) -> FastAPI:
    app = web.application(title, ready={}, registry=registry)

    @app.get("/v1/things/{thing}")
    def thing(thing: str) -> str:
        if thing == "broken":
            raise RuntimeError(thing)
        if thing == "absent":
            raise NotFound(thing)
        return thing

    return app


def requests(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Counts by service, method, route and status."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == "concilia_http_requests_total":
                labels = (sample.labels[name] for name in ("service", "method", "route", "status"))
                found[tuple(labels)] = sample.value
    return found


async def test_two_applications_do_not_see_each_other() -> None:
    one, other = metrics.registry(), metrics.registry()
    async with calling(app_of("Concilia auth", one)) as first, calling(app_of("Concilia client node", other)) as second:
        await first.get("/v1/things/a")
        await second.get("/v1/things/a")
        await second.get("/v1/things/b")
    assert requests(one) == {("auth", "GET", "/v1/things/{thing}", "200"): 1}
    assert requests(other) == {("client-node", "GET", "/v1/things/{thing}", "200"): 2}


async def test_an_application_without_a_registry_has_one() -> None:
    async with calling(app_of("Concilia auth")) as client:
        text = (await client.get("/metrics")).text
    assert "concilia_http_requests_total" in text
    assert "_created" not in text


async def test_a_callers_words_do_not_become_labels() -> None:
    registry = metrics.registry()
    async with calling(app_of("Concilia auth", registry)) as client:
        for number in range(50):
            await client.get(f"/v1/things/{number}")
            await client.get(f"/nothing/{number}")
            await client.request(f"METHOD{number}", "/v1/things/a")
    assert requests(registry) == {
        ("auth", "GET", "/v1/things/{thing}", "200"): 50,
        ("auth", "GET", "other", "404"): 50,
        ("auth", "other", "/v1/things/{thing}", "405"): 50,
    }


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [("/v1/things/broken", "/v1/things/{thing}", "500"), ("/v1/things/absent", "/v1/things/{thing}", "404")],
)
async def test_failures_are_counted(path: str, route: str, status: str) -> None:
    registry = metrics.registry()
    async with calling(app_of("Concilia auth", registry)) as client:
        with structlog.testing.capture_logs():  # a traceback drawn for people takes seconds
            assert str((await client.get(path)).status_code) == status
    assert requests(registry) == {("auth", "GET", route, status): 1}


async def test_a_body_that_is_refused_is_counted() -> None:
    registry = metrics.registry()
    async with calling(app_of("Concilia auth", registry)) as client:
        answer = await client.request("POST", "/v1/things/a", content=b"x" * 100_000)
    assert answer.status_code == 413
    assert requests(registry) == {("auth", "POST", "other", "413"): 1}


async def test_a_caller_who_leaves_is_counted() -> None:
    registry = metrics.registry()
    app = app_of("Concilia auth", registry)
    request = httpx.Request("POST", "http://service/v1/things/a")
    scope = {
        "type": "http",
        "method": "POST",
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": b"",
        "headers": [],
        "server": ("service", 80),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "http_version": "1.1",
    }

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def nothing_is_sent(message: object) -> None:
        pytest.fail(f"sent {message}")

    await app(scope, gone, nothing_is_sent)
    assert requests(registry) == {("auth", "POST", "other", "499"): 1}


def test_only_declared_codes_are_outcomes() -> None:
    assert metrics.outcome_of(NotFound("x")) == "not_found"
    assert metrics.outcome_of(Conflict("x", code="made_for_one_place")) == "other"
    assert metrics.outcome_of(Problem.from_document({"code": "what a peer said"}, 400)) == "other"
    assert metrics.outcome_of(RuntimeError("x")) == "other"


def test_what_cannot_be_read_is_left_out_and_the_rest_stays() -> None:
    def down() -> dict[tuple[str, ...], float]:
        raise ConnectionError

    registry = CollectorRegistry(auto_describe=True)
    registry.register(metrics.AtScrape("concilia_gone", "Not to be had.", ("a",), down))
    registry.register(metrics.AtScrape("concilia_there", "To be had.", ("a",), lambda: {("b",): 3}))
    Counter("concilia_counted", "Counted.", registry=registry).inc()
    text = metrics.exposition(registry).decode()
    assert "# TYPE concilia_gone gauge" in text
    assert 'concilia_there{a="b"} 3.0' in text
    assert "concilia_counted_total 1.0" in text


def test_registering_asks_nobody() -> None:
    asked: list[int] = []

    def read() -> dict[tuple[str, ...], float]:
        asked.append(1)
        return {(): 1}

    registry = metrics.registry()
    registry.register(metrics.AtScrape("concilia_lazy", "Lazy.", (), read))
    assert not asked
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(metrics.AtScrape("concilia_lazy", "Twice.", (), read))


async def test_a_stream_of_events_counts_until_it_begins() -> None:
    registry = metrics.registry()
    app = app_of("Concilia auth", registry)

    async def slowly() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        await asyncio.sleep(0.3)
        yield "data: 2\n\n"

    @app.get("/v1/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(slowly(), media_type="text/event-stream")

    async with calling(app) as client:
        began = time.perf_counter()
        assert (await client.get("/v1/stream")).text == "data: 1\n\ndata: 2\n\n"
        whole = time.perf_counter() - began
    told = registry.get_sample_value(
        "concilia_http_request_seconds_sum", {"service": "auth", "method": "GET", "route": "/v1/stream"}
    )
    assert told is not None
    assert whole - told >= 0.3

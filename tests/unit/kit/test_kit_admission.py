"""What goes beyond a process' places: refused at once and unread, counted, and each kind apart from the others."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from concilia_kit import connections, metrics, web
from concilia_kit.admission import WAITS, Kind, Places, TooBusy, only_waits
from concilia_kit.problems import MEDIA_TYPE
from concilia_kit.settings import ServiceSettings
from fastapi import Depends, FastAPI, Request
from starlette.responses import StreamingResponse

LARGE = b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
TRANSFER = b"POST /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"


class Service:
    """A service with one place for requests and one for transfers. `/wait` is answered when `open` is set."""

    def __init__(self) -> None:
        self.app = app = web.application("Concilia test", ready={"there": lambda: None}, streamed=("/files/",))
        self.places: Places = app.state.places
        self.places.bound(1, 1)
        self.open = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop

        @app.get("/wait")
        async def wait() -> str:
            self.loop = asyncio.get_running_loop()
            await self.open.wait()
            return "waited"

        @app.get("/poll", dependencies=[Depends(only_waits)])
        async def poll() -> str:
            self.loop = asyncio.get_running_loop()
            await self.open.wait()
            return "polled"

        @app.head("/things")
        @app.get("/things")
        async def things() -> str:
            return "things"

        @app.post("/things")
        async def take(request: Request) -> int:
            return len(await request.body())

        @app.get("/crash")
        async def crash() -> None:
            raise RuntimeError

        @app.post("/files/{name}")
        async def file(request: Request) -> int:
            return sum([len(chunk) async for chunk in request.stream()])

        @app.get("/events")
        async def events() -> StreamingResponse:
            async def told() -> AsyncIterator[str]:
                yield "data: 1\n\n"
                await self.open.wait()

            return StreamingResponse(told(), media_type="text/event-stream")

    def let_go(self) -> None:
        self.loop.call_soon_threadsafe(self.open.set)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def port(service: Service, serve: Callable[[FastAPI], int]) -> int:
    return serve(service.app)


@pytest.fixture
def http(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


@pytest.fixture
def waiting(service: Service, http: httpx.Client) -> Iterator[None]:
    """Somebody has the one place for requests."""
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(http.get, "/wait")
        until(lambda: not service.places.are_left(Kind.ANSWER))
        yield
        service.let_go()
        assert answer.result().json() == "waited"


def until(what: Callable[[], bool]) -> None:
    while not what():
        time.sleep(0.01)


def line_to(port: int, sent: bytes) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=60)
    line.sendall(sent)
    return line


def refused(http: httpx.Client, kind: Kind) -> str:
    name = f'concilia_http_refused_total{{kind="{kind}",service="test"}} '
    return next((line.removeprefix(name) for line in http.get("/metrics").text.splitlines() if name in line), "0")


@pytest.mark.usefixtures("waiting")
def test_what_goes_beyond_is_told_when_to_come_back(http: httpx.Client) -> None:
    answer = http.get("/things")
    assert (answer.status_code, answer.json()["code"]) == (429, "too_busy")
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    assert int(answer.headers["Retry-After"]) > 0
    assert "X-Request-ID" in answer.headers
    assert refused(http, Kind.ANSWER) == "1.0"


@pytest.mark.usefixtures("waiting")
def test_it_is_refused_before_its_body_came(port: int) -> None:
    with line_to(port, LARGE) as line:
        assert line.recv(1000).startswith(b"HTTP/1.1 429 ")


@pytest.mark.usefixtures("waiting")
def test_health_and_metrics_pass(http: httpx.Client) -> None:
    assert [http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics", "/openapi.json")] == [
        200,
        200,
        200,
        429,
    ]


@pytest.mark.usefixtures("waiting")
def test_transfers_have_places_of_their_own(http: httpx.Client, port: int, service: Service) -> None:
    assert http.post("/files/a", content=b"abc").json() == 3
    with line_to(port, TRANSFER) as line:
        until(lambda: not service.places.are_left(Kind.TRANSFER))
        assert http.post("/files/a", content=b"abc").status_code == 429
        line.sendall(b"x" * 60_000)
        assert line.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert refused(http, Kind.TRANSFER) == "1.0"


def test_after_all_are_answered_there_is_a_place_again(http: httpx.Client, service: Service) -> None:
    for path in ("/things", "/crash", "/nowhere", "/things"):
        assert http.get(path, headers={"Connection": "close"}).status_code != 429
    assert http.post("/things", content=b"x" * 100_000).status_code == 413
    assert service.places.are_left(Kind.ANSWER)
    assert service.places.are_left(Kind.BODY)


def test_bodies_that_do_not_come_take_no_requests_places(http: httpx.Client, port: int, service: Service) -> None:
    with line_to(port, LARGE + b"x") as line:
        until(lambda: not service.places.are_left(Kind.BODY))
        assert http.get("/things").status_code == 200
        assert http.post("/things", content=b"abc").status_code == 429
        line.sendall(b"x" * 59_999)
        assert line.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert http.post("/things", content=b"abc").json() == 3
    with line_to(port, LARGE + b"x"):
        until(lambda: not service.places.are_left(Kind.BODY))
    until(lambda: service.places.are_left(Kind.BODY))  # who leaves gives the place back
    assert refused(http, Kind.BODY) == "1.0"


def test_a_body_that_comes_when_the_places_are_taken_is_refused(
    http: httpx.Client, port: int, service: Service
) -> None:
    with line_to(port, LARGE + b"x") as line, ThreadPoolExecutor(1) as threads:
        until(lambda: not service.places.are_left(Kind.BODY))
        answer = threads.submit(http.get, "/wait")
        until(lambda: not service.places.are_left(Kind.ANSWER))
        line.sendall(b"x" * 59_999)
        assert line.recv(1000).startswith(b"HTTP/1.1 429 ")
        service.let_go()
        assert answer.result().status_code == 200
    assert service.places.are_left(Kind.ANSWER)
    assert service.places.are_left(Kind.BODY)


def test_streams_of_events_leave_their_places(http: httpx.Client) -> None:
    with ExitStack() as streams:
        for _ in range(3):
            opened = streams.enter_context(http.stream("GET", "/events"))
            assert next(opened.iter_text()) == "data: 1\n\n"
        assert http.get("/things").status_code == 200


def test_who_only_waits_takes_nobodys_place(http: httpx.Client, service: Service) -> None:
    def poll() -> str:
        while (answer := http.get("/poll")).status_code == 429:  # two who come together need two places at first
            pass
        return str(answer.json())

    with ThreadPoolExecutor(WAITS) as threads:
        answers = [threads.submit(poll) for _ in range(WAITS)]
        until(lambda: not service.places.are_left(Kind.WAIT))
        assert http.get("/things").status_code == 200
        before = float(refused(http, Kind.WAIT))
        refusal = http.get("/poll")
        assert (refusal.status_code, refusal.json()["code"]) == (429, "too_busy")
        assert float(refused(http, Kind.WAIT)) == before + 1
        service.let_go()
        assert [answer.result() for answer in answers] == ["polled"] * WAITS
    assert service.places.are_left(Kind.WAIT)
    assert service.places.are_left(Kind.ANSWER)


def test_a_place_is_counted_once() -> None:
    places = Places("test", metrics.registry(), requests=2, transfers=1)
    places.take(Kind.ANSWER)
    places.take(Kind.ANSWER)
    with pytest.raises(TooBusy):
        places.take(Kind.ANSWER)
    places.give_back(Kind.ANSWER)
    places.take(Kind.ANSWER)
    assert places.are_left(Kind.BODY)
    assert places.are_left(Kind.TRANSFER)


def test_more_connections_than_a_process_holds_are_refused(
    service: Service, serve: Callable[[FastAPI], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "most", lambda: 2)
    port = serve(service.app)
    asked = b"HEAD /things HTTP/1.1\r\nHost: x\r\n\r\n"
    with line_to(port, asked) as first, line_to(port, asked) as second:
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert second.recv(1000).startswith(b"HTTP/1.1 200 ")
        with socket.create_connection(("127.0.0.1", port), timeout=60) as third:
            said = b"".join(iter(lambda: third.recv(1000), b""))
        assert said.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After" in said
        first.sendall(asked)
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        until(lambda: http.get("/things").status_code == 200)


LIMITED = """
import resource
from concilia_kit import connections
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, min(hard, 400)))
before = connections.most()
connections.raise_limit()
print(before, connections.most(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_connections_leave_files_for_the_rest() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["75", "300", "400", "400"]


def test_settings_bound_what_is_taken_on(free_port: Callable[[], int]) -> None:
    app = web.application("Concilia test", ready={})
    with web.running_beside(app, ServiceSettings(port=free_port(), max_requests=1, max_transfers=2)):
        places: Places = app.state.places
        places.take(Kind.ANSWER)
        places.take(Kind.TRANSFER)
        assert not places.are_left(Kind.ANSWER)
        assert places.are_left(Kind.TRANSFER)

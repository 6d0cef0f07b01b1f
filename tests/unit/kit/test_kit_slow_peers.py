"""Peers that drip, linger or take nothing: their connections end, by themselves and with a word of why."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from concilia_kit import bodies, serving, web
from fastapi import FastAPI, Request, Response

SHORT = 0.5
"""Seconds in place of the real ones. What ends too early would end in no time; what does not end, not in a minute."""
TEN_GB = 10 * 10**9


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(serving, "HEAD_SECONDS", SHORT)
    monkeypatch.setattr(serving, "LINGER_SECONDS", SHORT)
    monkeypatch.setattr(bodies, "BODY_SECONDS", SHORT)
    return monkeypatch


@pytest.fixture
def app() -> FastAPI:
    made = web.application("Concilia test", ready={}, streamed=("/files/",))

    @made.post("/things")
    async def things(request: Request) -> int:
        return len(await request.body())

    @made.get("/large")
    async def large() -> Response:
        return Response(bytes(64 * 2**20))

    @made.post("/files/{name}")
    async def unread(name: str) -> str:
        return name

    return made


@pytest.fixture
def port(short: pytest.MonkeyPatch, app: FastAPI, serve: Callable[[FastAPI], int]) -> Iterator[int]:
    """A service with short patience, which answers others afterwards."""
    port = serve(app)
    yield port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        assert http.post("/things", content=b"abc").json() == 3


def line_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def drip(line: socket.socket, piece: bytes) -> None:
    """Send a piece again and again until the service ends the connection."""

    def send() -> None:
        try:
            while not over.wait(SHORT / 5):
                line.sendall(piece)
        except OSError:
            pass

    over = threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        wait_for_end(line)
    finally:
        over.set()
        thread.join()


def wait_for_end(line: socket.socket) -> bytes:
    """All that the service says until it ends the connection."""
    said = b""
    try:
        while piece := line.recv(65_536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def code_of(said: bytes) -> tuple[bytes, str]:
    head, _, body = said.partition(b"\r\n\r\n")
    return head.split(b" ")[1], json.loads(body)["code"]


@pytest.mark.parametrize("begun", [b"GET /thi", b"GET /things HTTP/1.1\r\nHost: x\r\nX: a", b"\r\n"])
def test_a_head_that_stops_is_told_so(port: int, begun: bytes) -> None:
    with line_to(port) as line:
        line.sendall(begun)
        assert code_of(wait_for_end(line)) == (b"408", "head_too_slow")


@pytest.mark.parametrize("piece", [b"a", b"\r\n"], ids=["header", "empty lines"])
def test_a_head_that_drips_is_ended(port: int, piece: bytes) -> None:
    with line_to(port) as line:
        if piece == b"a":
            line.sendall(b"GET / HTTP/1.1\r\nX: ")
        drip(line, piece)


def test_a_connection_that_asks_nothing_is_ended_without_a_word(port: int) -> None:
    with line_to(port) as line:
        assert wait_for_end(line) == b""


def test_a_second_head_has_no_more_time(port: int) -> None:
    with line_to(port) as line:
        line.sendall(b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 404 ")
        drip(line, b"X")


def test_a_head_behind_a_request_under_way_does_not_end_its_answer(port: int, app: FastAPI) -> None:
    going_on = threading.Event()

    @app.get("/slow")
    def slow() -> str:
        going_on.wait(60)
        return "slow"

    with line_to(port) as line:
        line.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET /thi")
        line.settimeout(3 * SHORT)
        with pytest.raises(TimeoutError):
            line.recv(1000)
        line.settimeout(60)
        going_on.set()
        answers = wait_for_end(line)
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b'"slow"' in answers
    assert b"head_too_slow" in answers


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n",
        b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nabc",
        b"POST /things HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
    ids=["nothing", "a part", "chunks"],
)
def test_a_small_body_that_stops_is_told_so(port: int, begun: bytes) -> None:
    with line_to(port) as line:
        line.sendall(begun)
        assert code_of(wait_for_end(line)) == (b"408", "body_too_slow")


def test_a_small_body_that_drips_is_ended(port: int) -> None:
    with line_to(port) as line:
        line.sendall(b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
        drip(line, b"a")


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("path", [b"/things", b"/nowhere", b"/healthz", b"/metrics"])
def test_what_announces_10_gb_is_refused_unread(port: int, method: bytes, path: bytes) -> None:
    with line_to(port) as line:
        line.sendall(b"%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (method, path, TEN_GB))
        assert code_of(wait_for_end(line)) == (b"413", "body_too_large")


def test_a_body_that_goes_on_behind_its_answer_is_ended(port: int) -> None:
    with line_to(port) as line:
        line.sendall(b"POST /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % TEN_GB)
        drip(line, b"a" * 1000)


def test_a_body_that_ends_soon_behind_its_answer_does_not_end_the_connection(port: int) -> None:
    with line_to(port) as line:
        for _ in range(3):
            line.sendall(b"POST /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nabcd")
            said = line.recv(1000)
            while not said.endswith(b'"a"'):
                said += line.recv(1000)
            line.sendall(b"efgh")


def test_an_answer_that_nobody_takes_is_given_up(port: int, short: pytest.MonkeyPatch) -> None:
    short.setattr(serving, "UNREAD_SECONDS", SHORT)
    with line_to(port) as line:
        line.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(10 * SHORT)
        # What lay in the kernel's buffers comes, and no more: it is not told how the connection ended otherwise.
        assert len(wait_for_end(line)) < 64 * 2**20

"""How HTTP is read and written: heads are bounded, files are sent by the kernel, connections go on after both."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from concilia_kit import serving

CONTENT = os.urandom(3_000_000)


@pytest.fixture
def url(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[str]:
    """Answers with what was sent to it, or with a part of a file; `/short` ends before it should."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            size, more = 0, True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                size += len(message["body"])
                more = message["more_body"]
            await answer(send, str(size).encode())
            return
        start, end = (int(word) for word in scope["query_string"].decode().split("-"))
        length = str(end - start).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        with path.open("rb") as file:
            half = (start + min(end, len(CONTENT))) // 2
            for offset, stop in ((start, half), (half, end)):
                message = {"file": file.fileno(), "offset": offset, "count": stop - offset, "more_body": stop < end}
                await send({"type": serving.ZERO_COPY, **message})

    async def answer(send: Any, content: bytes) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", str(len(content)).encode())],
            }
        )
        await send({"type": "http.response.body", "body": content})

    port = free_port()
    server = uvicorn.Server(serving.config(app, port=port, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_parts_of_a_file_and_bodies_on_one_connection(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for start, end in ((0, len(CONTENT)), (5, 6), (1_000_000, 2_500_000)):
            assert client.get(f"/?{start}-{end}").content == CONTENT[start:end]
            assert client.head(f"/?{start}-{end}").headers["content-length"] == str(end - start)
            assert client.post("/", content=CONTENT[start:end]).text == str(end - start)
            chunks = (CONTENT[place : min(place + 77_777, end)] for place in range(start, end, 77_777))
            assert client.post("/", content=chunks).text == str(end - start)


def test_a_file_that_is_too_short_ends_the_connection(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(f"/?0-{len(CONTENT) + 1}")
        assert client.get("/?0-10").content == CONTENT[:10]


def test_who_leaves_in_the_middle_disturbs_nobody(url: str) -> None:
    port = httpx.URL(url).port
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(f"GET /?0-{len(CONTENT)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert line.recv(100)
    with httpx.Client(base_url=url) as client:
        assert client.get(f"/?0-{len(CONTENT)}").content == CONTENT


@pytest.mark.parametrize("framing", ["", "a", "chunked, a"])
def test_a_body_framed_in_no_known_way_is_a_problem_that_nobody_keeps(url: str, framing: str) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as line:
        line.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {framing}\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: line.recv(4096), b"")).partition(b"\r\n\r\n")
    said = head.decode().split("\r\n")
    assert said[0].startswith("HTTP/1.1 400 ")
    assert {"Content-Type: application/problem+json", "Cache-Control: no-store"} <= set(said)
    assert json.loads(body)["code"] == "request_malformed"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 2**21,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 2**21,
        b"GET / HTTP/1.1\r\n" + b"X: aaaaaaaaaaaaaaaaaaaaaa\r\n" * 2**17,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 2**21,
    ],
    ids=["address", "header", "headers", "trailer"],
)
def test_a_head_that_does_not_end_is_refused(url: str, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as line:
        try:
            line.sendall(head)
            said = line.recv(100)
        except (ConnectionResetError, BrokenPipeError):
            said = b""  # it did not even read on
        assert said in (b"",) or said.startswith(b"HTTP/1.1 400 ")
    with httpx.Client(base_url=url) as client:
        assert client.get("/?0-10").content == CONTENT[:10]

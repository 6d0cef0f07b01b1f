"""The front door of one machine: a real process between a real client and a real service."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from concilia.stack.front_door.proxy import API_HEADERS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

HEADERS = Path(__file__).parents[3] / "frontend" / "headers.json"
CHUNK = bytes(range(256)) * 256
CHUNKS = 800  # of 64 KiB: 50 MiB


@dataclass
class Upstream:
    """A service behind the door: tells what reached it, takes and gives large bodies, streams events one by one."""

    go_on: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)

    def app(self) -> Starlette:
        everything = ["GET", "HEAD", "POST", "PUT", "DELETE"]
        return Starlette(
            routes=[
                Route("/v1/artifacts/{digest}", self.take, methods=["PUT"]),
                Route("/v1/artifacts/{digest}", self.give),
                Route("/v1/artifacts/{digest}/early", self.early, methods=["PUT"]),
                Route("/v1/artifacts/{digest}/cut", self.cut),
                Route("/v1/jobs/{job}/stream", self.stream),
                Route("/{rest:path}", self.echo, methods=everything),
            ]
        )

    async def take(self, request: Request) -> Response:
        digest, size = hashlib.sha256(), 0
        async for chunk in request.stream():
            digest.update(chunk)
            size += len(chunk)
        length = request.headers.get("content-length")
        return JSONResponse({"digest": digest.hexdigest(), "size": size, "length": length}, 201)

    async def give(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(CHUNKS):
                yield CHUNK

        return StreamingResponse(chunks(), headers={"Content-Length": str(CHUNKS * len(CHUNK))})

    async def early(self, request: Request) -> Response:
        return JSONResponse({"code": "digest_mismatch"}, 422)

    async def cut(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield CHUNK
            raise ConnectionAbortedError

        return StreamingResponse(chunks(), headers={"Content-Length": "1000000"})

    async def stream(self, request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            try:
                yield b"id: 1\ndata: first\n\n"
                while not self.go_on.is_set():
                    await _pause()
                yield b"id: 2\ndata: second\n\n"
                while True:
                    await _pause()
            finally:
                self.left.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        self.calls.append(request.url.path)
        told = {
            "method": request.method,
            "path": request.scope["raw_path"].decode(),
            "query": request.url.query,
            "headers": dict(request.headers),
            "body": body.decode(),
        }
        answer = JSONResponse(told, headers={"Keep-Alive": "timeout=5", "X-Request-ID": "as-the-service-says"})
        answer.headers["Clear-Site-Data"] = '"cache", "storage"'
        answer.set_cookie("__Host-concilia", "s", secure=True)
        return answer


async def _pause() -> None:
    await anyio.sleep(0.01)


@dataclass
class Door:
    """A front door that runs."""

    http: httpx.Client
    process: subprocess.Popen[str]
    upstream: Upstream
    url: str

    def most_memory(self) -> int:
        """Largest resident size so far, kB."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front") / "dist"
    (folder / "assets").mkdir(parents=True)
    for name in ("index", "jobs", "404"):
        (folder / f"{name}.html").write_text(f"<!doctype html><title>{name}</title>")
    (folder / "icon.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "assets" / "main-ABCDEFGH.js").write_text("export {};")
    (folder / ".ready").write_text("hidden")
    (folder.parent / "secret.html").write_text("secret")
    (folder / "out.html").symlink_to(folder.parent / "secret.html")
    return folder


@pytest.fixture(scope="module")
def upstream(free_port: Callable[[], int]) -> Iterator[tuple[Upstream, str]]:
    made, port = Upstream(), free_port()
    server = uvicorn.Server(
        uvicorn.Config(made.app(), port=port, log_config=None, ws="none", timeout_graceful_shutdown=0)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    yield made, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def environment(pages: Path, upstream: tuple[Upstream, str], free_port: Callable[[], int]) -> dict[str, str]:
    settings = {
        "PORT": str(free_port()),
        "PAGES": str(pages),
        "HEADERS": str(HEADERS),
        "AUTH_URL": upstream[1],
        "MODEL_URL": upstream[1],
        "AGGREGATOR_URL": upstream[1],
        "CHAIN_URL": f"http://127.0.0.1:{free_port()}",  # nobody is there
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")}
    return inherited | {f"CONCILIA_FRONT_{name}": value for name, value in settings.items()}


def open_door(environment: dict[str, str], upstream: Upstream) -> Door:
    process = subprocess.Popen(
        [sys.executable, "-m", "concilia.stack.front_door"], env=environment, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{environment['CONCILIA_FRONT_PORT']}"
    http = httpx.Client(base_url=url, timeout=30, trust_env=False)
    while True:
        try:
            if http.get("/healthz").json() == {"status": "ok"}:
                return Door(http, process, upstream, url)
        except httpx.TransportError:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)


@pytest.fixture(scope="module")
def door(environment: dict[str, str], upstream: tuple[Upstream, str]) -> Iterator[Door]:
    opened = open_door(environment, upstream[0])
    yield opened
    opened.http.close()
    opened.process.terminate()
    log = opened.process.communicate(timeout=30)[1]
    assert "Traceback" not in log, log


# ----------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("path", "title"), [("/", "index"), ("/index", "index"), ("/jobs", "jobs"), ("/jobs?id=1", "jobs")]
)
def test_pages_have_no_extension(door: Door, path: str, title: str) -> None:
    answer = door.http.get(path)
    assert (answer.status_code, answer.text) == (200, f"<!doctype html><title>{title}</title>")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Cache-Control"] == "no-cache"
    again = door.http.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_every_page_has_the_headers_that_are_written_down(door: Door) -> None:
    expected = json.loads(HEADERS.read_text())
    assert len(expected) >= 6
    for path, status in (("/", 200), ("/assets/main-ABCDEFGH.js", 200), ("/nothing", 404)):
        answer = door.http.get(path)
        assert answer.status_code == status
        assert {name: answer.headers.get(name) for name in expected} == expected, path
    refused = door.http.post("/jobs")
    assert (refused.status_code, refused.headers.get("Referrer-Policy")) == (405, "no-referrer")


def test_hashed_assets_may_be_kept_and_nothing_else(door: Door) -> None:
    asset = door.http.get("/assets/main-ABCDEFGH.js")
    assert asset.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert asset.headers["Content-Type"].startswith("text/javascript")
    for path in ("/", "/icon.svg", "/assets/gone-ABCDEFGH.js"):
        assert door.http.get(path).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/assets", "/jobs.htm", "/.ready", "/out", "/%00", "/" + "a" * 300),
        *("/..%2fsecret", "/..%2Fsecret.html", "/assets/..%2f..%2fsecret.html", "/%2e%2e/secret.html", "//etc/passwd"),
    ],
)
def test_what_is_not_there_is_the_404_page(door: Door, path: str) -> None:
    answer = door.http.get(httpx.URL(door.url).copy_with(raw_path=path.encode()))
    assert (answer.status_code, answer.text) == (404, "<!doctype html><title>404</title>")


def test_dots_as_they_are_sent(door: Door) -> None:
    for path in ("/../secret.html", "/assets/../../secret", "/api/model/../../secret"):
        assert _raw(door, path).startswith(b"HTTP/1.1 404 "), path


def _raw(door: Door, path: str) -> bytes:
    address = httpx.URL(door.url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n".encode())
        return connection.makefile("rb").read()


# -------------------------------------------------------------------------------------------------------- services


def test_a_request_as_its_service_gets_it(door: Door) -> None:
    path = "/api/auth/v1/members/0xAB%2FCD/roles?name=a%20b&c=%2F"
    answer = door.http.post(
        path,
        content=b'{"a": 1}',
        headers={
            "Authorization": "Bearer t",
            "X-CSRF-Token": "c",
            "X-Request-ID": "0123456789abcdef",
            "X-Forwarded-For": "1.2.3.4",
            "X-Forwarded-Host": "evil.example",
            "Forwarded": "for=1.2.3.4",
            "Connection": "keep-alive, X-Between",
            "X-Between": "us",
            "TE": "trailers",
            "Last-Event-ID": "7",
        },
    )
    told = answer.json()
    assert (told["method"], told["body"]) == ("POST", '{"a": 1}')
    assert told["path"] == "/v1/members/0xAB%2FCD/roles"
    assert told["query"] == "name=a%20b&c=%2F"
    got = told["headers"]
    assert got["host"] == httpx.URL(door.url).netloc.decode()
    assert (got["authorization"], got["x-csrf-token"], got["last-event-id"]) == ("Bearer t", "c", "7")
    assert (got["x-forwarded-for"], got["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert got["x-request-id"] == "0123456789abcdef"
    assert got["content-length"] == "8"
    assert not {"x-forwarded-host", "forwarded", "x-between", "te", "transfer-encoding"} & set(got)
    assert {name: answer.headers[name] for name in API_HEADERS} == API_HEADERS
    assert "keep-alive" not in answer.headers
    assert answer.headers["X-Request-ID"] == "as-the-service-says"
    assert answer.headers["Clear-Site-Data"] == '"cache", "storage"'


def test_hidden_names_of_a_service_are_its_own(door: Door) -> None:
    told = door.http.get("/api/auth/.well-known/jwks.json").json()
    assert told["path"] == "/.well-known/jwks.json"


def test_a_request_id_that_is_none_is_replaced(door: Door) -> None:
    for given in ("", "short", "x" * 65, "bad id with spaces"):
        told = door.http.get("/api/auth/v1/x", headers={"X-Request-ID": given}).json()
        assert re.fullmatch("[0-9a-f]{32}", told["headers"]["x-request-id"]), given


def test_nothing_is_added_that_the_caller_did_not_send(door: Door) -> None:
    told = _raw(door, "/api/model/v1/models").split(b"\r\n\r\n", 1)[1]
    assert set(json.loads(told)["headers"]) == {"host", "x-request-id", "x-forwarded-for", "x-forwarded-proto"}


def test_cookies_are_auths_alone(door: Door) -> None:
    for service, passed in (("auth", True), ("model", False), ("aggregator", False)):
        answer = httpx.get(f"{door.url}/api/{service}/v1/x", headers={"Cookie": "__Host-concilia=secret"})
        assert ("cookie" in answer.json()["headers"]) is passed, service
        assert ("set-cookie" in answer.headers) is passed, service


@pytest.mark.parametrize(
    "path",
    [
        *("/api/auth/metrics", "/api/auth/%6detrics", "/api/model/metrics/", "/api/aggregator/./metrics"),
        *("/api/other/v1/x", "/api/", "/api/auth", "/api/model/v1/..%2f..%2fmetrics"),
    ],
)
def test_what_is_behind_the_door_and_not_shown(door: Door, path: str) -> None:
    before = len(door.upstream.calls)
    answer = _raw(door, path)
    assert answer.startswith(b"HTTP/1.1 404 ")
    if path.count("/") > 2:
        assert b"application/problem+json" in answer
    assert door.upstream.calls[before:] == []


def test_a_service_that_does_not_answer(door: Door) -> None:
    answer = door.http.get("/api/chain/v1/events")
    assert answer.status_code == 503
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "service_unavailable"
    assert "chain" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/api/auth/v1/tokens", 64 * 2**10),
        ("/api/auth/v1/csp-reports", 16 * 2**10),
        ("/api/model/v1/predictions", 12 * 2**20),
    ],
)
def test_bodies_have_their_limits(door: Door, path: str, limit: int) -> None:
    def without_length(size: int) -> Iterator[bytes]:
        for at in range(0, size, 2**16):
            yield bytes(min(2**16, size - at))

    for content in (bytes(limit), without_length(limit)):
        assert door.http.post(path, content=content).status_code == 200
    before = len(door.upstream.calls)
    for content in (bytes(limit + 1), without_length(limit + 1)):
        answer = door.http.post(path, content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert door.upstream.calls[before:] == []


def test_large_bodies_stream_both_ways(door: Door) -> None:
    size, digest = CHUNKS * len(CHUNK), hashlib.sha256(CHUNK * CHUNKS).hexdigest()
    before = door.most_memory()

    def content() -> Iterator[bytes]:
        for _ in range(CHUNKS):
            yield CHUNK

    sent = door.http.put(f"/api/model/v1/artifacts/{digest}", content=content(), headers={"Content-Length": str(size)})
    assert sent.json() == {"digest": digest, "size": size, "length": str(size)}
    sent = door.http.put(f"/api/model/v1/artifacts/{digest}", content=content())
    assert sent.json() == {"digest": digest, "size": size, "length": None}
    got = hashlib.sha256()
    with door.http.stream("GET", f"/api/model/v1/artifacts/{digest}") as answer:
        assert answer.headers["Content-Length"] == str(size)
        for chunk in answer.iter_raw():
            got.update(chunk)
    assert got.hexdigest() == digest
    assert door.most_memory() - before < 20_000


def test_an_answer_before_the_body_was_read_arrives(door: Door) -> None:
    for _ in range(2):  # the connection goes on to work
        answer = door.http.put("/api/model/v1/artifacts/x/early", content=CHUNK * 100)
        assert (answer.status_code, answer.json()) == (422, {"code": "digest_mismatch"})


def test_an_answer_that_breaks_off_is_seen_to(door: Door) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        door.http.get("/api/model/v1/artifacts/x/cut")
    assert door.http.get("/api/model/v1/x").status_code == 200


def test_events_arrive_as_they_are_sent_and_the_service_sees_who_leaves(door: Door) -> None:
    door.upstream.go_on.clear()
    door.upstream.left.clear()
    with door.http.stream("GET", "/api/aggregator/v1/jobs/1/stream") as answer:
        chunks = answer.iter_raw()
        assert next(chunks) == b"id: 1\ndata: first\n\n"  # the service waits for us before it sends the second
        door.upstream.go_on.set()
        assert next(chunks) == b"id: 2\ndata: second\n\n"
        assert not door.upstream.left.is_set()
    assert door.upstream.left.wait(10)


# --------------------------------------------------------------------------------------------- starting and stopping


def test_it_stops_with_a_stream_open(
    environment: dict[str, str], upstream: tuple[Upstream, str], free_port: Any
) -> None:
    opened = open_door({**environment, "CONCILIA_FRONT_PORT": str(free_port())}, upstream[0])
    with opened.http.stream("GET", "/api/aggregator/v1/jobs/1/stream") as answer:
        assert next(answer.iter_raw()) == b"id: 1\ndata: first\n\n"
        opened.process.send_signal(signal.SIGTERM)
        log = opened.process.communicate(timeout=3)[1]
    assert opened.process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in log
    assert '"path": "/api/aggregator/v1/jobs/1/stream"' in log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PAGES": "/nowhere"}, "CONCILIA_FRONT_PAGES"),
        ({"HEADERS": "/dev/null"}, "CONCILIA_FRONT_HEADERS"),
        ({"HEADERS": str(Path(__file__))}, "no JSON object of headers"),
        ({"CHAIN_URL": "chain"}, "CONCILIA_FRONT_CHAIN_URL"),
        ({}, "cannot listen on 127.0.0.1:"),
    ],
)
def test_settings_that_do_not_do(door: Door, environment: dict[str, str], change: dict[str, str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "concilia.stack.front_door"],
        env={**environment, **{f"CONCILIA_FRONT_{name}": value for name, value in change.items()}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1

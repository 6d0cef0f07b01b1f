"""Callers who mean harm, against the model service as it runs: it stays as large as it was, and answers the others."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest
from concilia_kit.problems import MEDIA_TYPE
from concilia_kit.roles import Role

from .model_process import Peers, Running

ALICE = "0x00000000000000000000000000000000000A11cE"
ROLES = (Role.ADMIN, Role.COORDINATOR, Role.HOSPITAL, Role.CLINICIAN)
DIGEST = "ab" * 32
TEN_GB = 10 * 10**9
CONNECTIONS = 200
GROWTH = 50 * 10**6
"""Bytes of memory that an attack may cost."""


@pytest.fixture
def service(start: Callable[[], Running], peers: tuple[Peers, str]) -> Running:
    """A service that has served: what is loaded with the first requests does not count."""
    service = start()
    for _ in range(20):
        assert service.http.get("/v1/models", headers=peers[0].headers(ALICE, *ROLES)).status_code == 200
    assert service.http.get("/openapi.json").status_code == 200
    return service


@pytest.fixture
def memory(service: Running) -> Iterator[Callable[[], None]]:
    """Checks that the service has not grown; once more at the end."""
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss

    def check() -> None:
        assert process.memory_info().rss - before < GROWTH

    yield check
    check()


def line_to(service: Running, sent: str) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    line.sendall(sent.encode())
    return line


def head(method: str, path: str, headers: dict[str, str]) -> str:
    lines = [f"{method} {path} HTTP/1.1", "Host: model", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""])


def test_two_hundred_who_drip_their_heads(
    service: Running, peers: tuple[Peers, str], memory: Callable[[], None]
) -> None:
    headers = peers[0].headers(ALICE, *ROLES)
    begun = head("PUT", f"/v1/artifacts/{DIGEST}", {**headers, "Content-Length": "100"}).removesuffix("\r\n") + "X: "
    said: list[bytes] = []
    with ExitStack() as lines:
        dripping = [lines.enter_context(line_to(service, begun)) for _ in range(CONNECTIONS)]
        for line in dripping:
            line.setblocking(False)
        while dripping:  # until the service has ended all of them
            for line in list(dripping):
                try:
                    line.send(b"a")
                    piece = line.recv(1000)
                except BlockingIOError:
                    continue
                except OSError:
                    piece = b""
                dripping.remove(line)
                said.append(piece)
            assert service.http.get("/v1/models", headers=headers).status_code == 200
            memory()
            time.sleep(1)
    assert any(b"head_too_slow" in each for each in said)  # who sends in that moment may find the connection gone


def test_what_announces_10_gb_on_any_route(
    service: Running, peers: tuple[Peers, str], memory: Callable[[], None]
) -> None:
    paths = service.http.get("/openapi.json").json()["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert ("PATCH", "/v1/uploads/{upload}") in routes
    authorization = peers[0].headers(ALICE, *ROLES)
    answers = {}
    for method, path in routes:
        address = path.replace("{digest}", DIGEST).replace("{upload}", "ab" * 16)
        status, code = announced(service, method, address, authorization)
        answers[method, path] = (status, code)
        assert 200 <= status < 500, (method, path, status, code)
        assert service.http.get("/v1/models", headers=authorization).status_code == 200
        memory()
    # Whatever reads a body says that this one is too large; the others do not look at it.
    for route in [
        ("PUT", "/v1/artifacts/{digest}"),
        ("POST", "/v1/predictions"),
        ("POST", "/v1/models"),
        ("POST", "/v1/initial-models"),
        ("GET", "/v1/models"),
        ("GET", "/healthz"),
    ]:
        assert answers[route][0] == 413, (route, answers[route])


def test_an_upload_of_10_gb_is_not_begun(
    service: Running, peers: tuple[Peers, str], memory: Callable[[], None]
) -> None:
    authorization = peers[0].headers(ALICE, *ROLES)
    metadata = "digest " + base64.b64encode(DIGEST.encode()).decode()
    tus = {"Tus-Resumable": "1.0.0", "Upload-Metadata": metadata}
    asked = {**authorization, **tus, "Upload-Length": str(TEN_GB)}
    refused = service.http.post("/v1/uploads", headers=asked)
    assert (refused.status_code, refused.json()["code"]) == (413, "artifact_too_large")
    with_bytes = {**tus, "Upload-Length": str(TEN_GB), "Content-Type": "application/offset+octet-stream"}
    assert announced(service, "POST", "/v1/uploads", {**authorization, **with_bytes}) == (413, "artifact_too_large")
    # One that was begun small does not become large.
    begun = service.http.post("/v1/uploads", headers={**asked, "Upload-Length": "1000"})
    going_on = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    place = f"/v1/{begun.headers['location']}"
    assert announced(service, "PATCH", place, {**authorization, **going_on}) == (413, "upload_too_long")
    memory()


def announced(service: Running, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """The status and code of an answer to 10 GB, of which none come before it and 32 MB after it."""
    with line_to(service, head(method, path, {**headers, "Content-Length": str(TEN_GB)})) as line:
        said = b""
        while len(said) < _length(said, has_body=method != "HEAD"):
            piece = line.recv(65_536)
            assert piece, said
            said += piece
        with contextlib.suppress(OSError):
            for _ in range(32):
                line.sendall(bytes(2**20))
    first, _, body = said.partition(b"\r\n\r\n")
    return int(first.split(b" ")[1]), json.loads(body)["code"] if MEDIA_TYPE.encode() in first and body else ""


def _length(said: bytes, *, has_body: bool) -> int:
    """Bytes of an answer, as its head says once it is there."""
    first, ending, _ = said.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", first) if has_body else None
    return len(first) + len(ending) + int(length[1] if length else 0) if ending else len(said) + 1

"""Artifacts over REST: what is accepted, what is refused, what stays behind, who reads what."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from concilia_kit.roles import Role
from concilia_model.artifacts import DirectoryStore
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

Make = Callable[..., tuple[str, bytes]]


@pytest.fixture
def small(safetensors: Make) -> tuple[str, bytes]:
    return safetensors({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3, np.int64)})


async def test_an_upload_is_stored_under_its_digest(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    answer = await service.put(digest, content, service.alice)
    assert answer.status_code == 201
    assert answer.json() == {
        "digest": digest,
        "size": len(content),
        "owner": "0x00000000000000000000000000000000000000A1",
        "tensors": 2,
        "origin": None,
    }
    assert service.files() == [service.settings.directory / digest[:2] / digest]
    assert service.content(service.files()[0]) == content
    again = await service.put(digest, content, service.alice)
    assert (again.status_code, again.json()) == (200, answer.json())
    info = await service.http.get(f"/v1/artifacts/{digest}/info", headers=service.alice)
    assert info.json() == answer.json()


async def test_a_large_upload_in_odd_chunks(service: Any, safetensors: Make) -> None:
    digest, content = safetensors({"w": np.arange(1_500_000, dtype=np.float32)})

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 77_777):
            yield content[start : start + 77_777]

    answer = await service.http.put(f"/v1/artifacts/{digest}", content=chunks(), headers=service.alice)
    assert answer.status_code == 201
    got = await service.http.get(f"/v1/artifacts/{digest}", headers=service.alice)
    assert got.content == content


async def test_any_corrupted_byte_is_refused(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    loop = asyncio.get_running_loop()

    @given(st.integers(0, len(content) - 1), st.integers(1, 255))
    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def corrupt(position: int, mask: int) -> None:
        broken = bytearray(content)
        broken[position] ^= mask
        put = service.put(digest, bytes(broken), service.alice)
        answer = asyncio.run_coroutine_threadsafe(put, loop).result(30)
        assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")

    await asyncio.to_thread(corrupt)
    assert service.files() == []
    assert (await service.http.get(f"/v1/artifacts/{digest}", headers=service.admin)).status_code == 404


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors at all",
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"trailing",
        b"\x80\x04\x95pickle",
    ],
)
async def test_malformed_files_are_refused(service: Any, content: bytes) -> None:
    answer = await service.put(hashlib.sha256(content).hexdigest(), content, service.alice)
    assert (answer.status_code, answer.json()["code"]) == (422, "artifact_malformed")
    assert service.files() == []


async def test_the_bound_holds_for_what_is_declared_and_for_what_comes(serve: Any, settings: Any) -> None:
    content = bytes(8_000_000)
    digest = hashlib.sha256(content).hexdigest()
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for start in range(0, len(content), 100_000):
            read += 100_000
            yield content[start : start + 100_000]

    async with serve(settings.model_copy(update={"max_artifact_bytes": 1_500_000})) as service:
        declared = await service.http.put(
            f"/v1/artifacts/{digest}", content=chunks(), headers={**service.alice, "Content-Length": "3000000"}
        )
        assert (declared.status_code, declared.json()["code"], read) == (413, "artifact_too_large", 0)
        actual = await service.http.put(f"/v1/artifacts/{digest}", content=chunks(), headers=service.alice)
        assert (actual.status_code, actual.json()["code"]) == (413, "artifact_too_large")
        assert read < len(content)
        assert service.files() == []


async def test_a_sender_that_goes_away_leaves_nothing(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    messages: list[dict[str, Any]] = []
    coming = iter([{"type": "http.request", "body": content[:20], "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(coming)

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/v1/artifacts/{digest}",
        "headers": [(b"authorization", service.alice["Authorization"].encode())],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("model", 80),
        "client": ("test", 1),
    }
    await service.http._transport.app(scope, receive, send)
    assert messages[0]["status"] == 400
    assert b"upload_interrupted" in messages[1]["body"]
    assert service.files() == []


async def test_the_reserve_stays_free(serve: Any, settings: Any, small: tuple[str, bytes]) -> None:
    async with serve(settings.model_copy(update={"reserve_bytes": 2**60})) as service:
        answer = await service.put(*small, service.alice)
        assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
        assert service.files() == []
        ready = await service.http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"database": "ok", "disk": "NoSpace", "networks": "ok"})


async def test_many_at_once_store_it_once(service: Any, safetensors: Make) -> None:
    digest, content = safetensors({"w": np.arange(400_000, dtype=np.float32)})
    who = [service.alice, service.bob, service.coordinator, service.admin] * 5
    answers = await asyncio.gather(*(service.put(digest, content, headers) for headers in who))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["owner"] for answer in answers}) == 1
    assert [service.content(path) for path in service.files()] == [content]


async def test_ranges(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    await service.put(digest, content, service.alice)
    url = f"/v1/artifacts/{digest}"

    async def get(**headers: str) -> httpx.Response:
        return await service.http.get(url, headers={**service.alice, **headers})

    whole = await get()
    assert whole.content == content
    assert whole.headers["etag"] == f'"{digest}"'
    assert "immutable" in whole.headers["cache-control"]
    assert whole.headers["content-type"] == "application/octet-stream"
    for first, last in ((0, 0), (5, 20), (len(content) - 3, len(content) + 9)):
        part = await get(Range=f"bytes={first}-{last}")
        assert (part.status_code, part.content) == (206, content[first : last + 1])
    tail = await get(Range="bytes=-7")
    assert tail.content == content[-7:]
    resumed = await get(Range="bytes=8-", **{"If-Range": f'"{digest}"'})
    assert (resumed.status_code, resumed.content) == (206, content[8:])
    for bad in (f"bytes={len(content)}-", "bytes=x-y", "furlongs=1-2"):
        refused = await get(Range=bad)
        assert (refused.status_code, refused.json()["code"]) == (416, "range_not_satisfiable")
        assert refused.headers["content-range"] == f"bytes */{len(content)}"
    for held in (f'"{digest}"', f'"x", W/"{digest}"', "*"):
        kept = await get(**{"If-None-Match": held})
        assert (kept.status_code, kept.content, kept.headers["etag"]) == (304, b"", f'"{digest}"')
    assert (await get(**{"If-None-Match": f'"{"0" * 64}"'})).content == content
    unseen = await service.http.get(url, headers={**service.bob, "If-None-Match": f'"{digest}"'})
    assert unseen.status_code == 404
    head = await service.http.head(url, headers=service.alice)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))


async def test_who_reads_what(service: Any, safetensors: Make) -> None:
    of_alice = safetensors({"alice": np.zeros(2, np.float32)})
    shared = safetensors({"coordinator": np.zeros(2, np.float32)})
    await service.put(*of_alice, service.alice)
    await service.put(*shared, service.coordinator)

    async def statuses(digest: str) -> dict[str, int]:
        callers = ("alice", "bob", "coordinator", "admin", "auditor", "clinician")
        found = {}
        for name in callers:
            answers = [
                await service.http.request(method, f"/v1/artifacts/{digest}{tail}", headers=getattr(service, name))
                for method, tail in (("GET", ""), ("HEAD", ""), ("GET", "/info"))
            ]
            assert len({answer.status_code for answer in answers}) == 1
            found[name] = answers[0].status_code
        return found

    everybody = {"alice": 200, "bob": 200, "coordinator": 200, "admin": 200, "auditor": 200, "clinician": 403}
    assert await statuses(shared[0]) == everybody
    assert await statuses(of_alice[0]) == {**everybody, "bob": 404}
    # What does not exist and what must not be seen look the same.
    hidden = (await service.http.get(f"/v1/artifacts/{of_alice[0]}", headers=service.bob)).json()
    absent = (await service.http.get(f"/v1/artifacts/{'0' * 64}", headers=service.bob)).json()
    assert {**hidden, "detail": ""} == {**absent, "detail": ""}
    # Naming the digest is not enough to own the bytes; bringing them is.
    stolen = await service.put(of_alice[0], b"", service.bob)
    assert (stolen.status_code, stolen.json()["code"]) == (422, "digest_mismatch")
    assert await statuses(of_alice[0]) == {**everybody, "bob": 404}
    brought = await service.put(*of_alice, service.bob)
    assert (brought.status_code, brought.json()["owner"]) == (200, "0x00000000000000000000000000000000000000A1")
    assert await statuses(of_alice[0]) == everybody


async def test_a_hospital_with_another_role_uploads_as_a_hospital(service: Any, small: tuple[str, bytes]) -> None:
    both = service.issuer.headers(
        "0x00000000000000000000000000000000000000bb", Role.HOSPITAL, Role.ADMIN, Role.COORDINATOR
    )
    await service.put(*small, both)
    assert (await service.http.get(f"/v1/artifacts/{small[0]}", headers=service.alice)).status_code == 404


@pytest.mark.parametrize(("who", "status"), [("auditor", 403), ("clinician", 403)])
async def test_who_may_upload(service: Any, small: tuple[str, bytes], who: str, status: int) -> None:
    assert (await service.put(*small, getattr(service, who))).status_code == status
    assert service.files() == []


async def test_without_a_token_for_this_service_nothing_is_read(service: Any, small: tuple[str, bytes]) -> None:
    elsewhere = service.issuer.headers("0x" + "1" * 40, Role.ADMIN, audience="chain")
    for headers in ({}, elsewhere, {"Authorization": "Bearer nonsense"}):
        assert (await service.put(*small, headers)).status_code == 401


async def test_every_route_is_guarded(service: Any) -> None:
    document = (await service.http.get("/openapi.json")).json()
    routes = [
        (method, path)
        for path, operations in document["paths"].items()
        for method in operations
        if path not in ("/healthz", "/readyz")
    ]
    assert len(routes) == 17
    for method, path in routes:
        url = path.replace("{digest}", "0" * 64).replace("{upload}", "0" * 32)
        assert (await service.http.request(method, url)).status_code == 401, (method, path)


@pytest.mark.parametrize("digest", ["A" * 64, "0" * 63, "..%2f..%2fetc%2fpasswd", "zz" * 32])
async def test_what_is_no_digest_is_no_path(service: Any, digest: str) -> None:
    for method in ("GET", "PUT", "HEAD"):
        answer = await service.http.request(method, f"/v1/artifacts/{digest}", headers=service.admin)
        assert answer.status_code in (404, 422)
    assert service.files() == []


async def test_a_lost_file_counts_as_absent_and_may_be_brought_again(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    await service.put(digest, content, service.alice)
    service.files()[0].unlink()
    assert (await service.http.get(f"/v1/artifacts/{digest}", headers=service.admin)).status_code == 404
    assert (await service.put(digest, content, service.alice)).status_code == 200
    assert (await service.http.get(f"/v1/artifacts/{digest}", headers=service.admin)).content == content


def test_a_killed_upload_is_swept_when_it_is_old(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, 100, 0)
    store.prepare()
    old, young = tmp_path / "incoming" / "old", tmp_path / "incoming" / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.prepare()
    assert not old.exists()
    assert young.exists()


async def test_a_disk_that_fills_up_while_writing(
    serve: Any, settings: Any, small_disk: Path, safetensors: Make, small: tuple[str, bytes], monkeypatch: Any
) -> None:
    digest, content = safetensors({"w": np.zeros(900_000, np.float32)})
    # Another writer took the room between the look at the disk and the write: only the kernel still knows.
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**40))
    async with serve(settings.model_copy(update={"directory": small_disk / "store"})) as service:
        answer = await service.put(digest, content, service.alice)
        assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
        assert service.files() == []
        info = await service.http.get(f"/v1/artifacts/{digest}/info", headers=service.admin)
        assert info.status_code == 404
        assert (await service.put(*small, service.alice)).status_code == 201  # and the room is free again


async def test_a_disk_that_is_seen_to_fill_up(
    serve: Any, settings: Any, small_disk: Path, safetensors: Make, small: tuple[str, bytes]
) -> None:
    digest, content = safetensors({"w": np.zeros(900_000, np.float32)})

    async def chunks() -> AsyncIterator[bytes]:  # without a length nothing can be refused beforehand
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    async with serve(settings.model_copy(update={"directory": small_disk / "store"})) as service:
        for body in (content, chunks()):
            answer = await service.http.put(f"/v1/artifacts/{digest}", content=body, headers=service.alice)
            assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
            assert service.files() == []
        assert (await service.put(*small, service.alice)).status_code == 201

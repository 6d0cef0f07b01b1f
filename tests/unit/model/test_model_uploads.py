"""Resumable uploads over REST: the protocol's words, whose upload it is, what stays after breaks, what ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from concilia_model import tus
from concilia_model.artifacts import DirectoryStore
from concilia_model.errors import UploadLocked, UploadMalformed
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

Make = Callable[..., tuple[str, bytes]]
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": tus.MEDIA_TYPE}


@pytest.fixture
def small(safetensors: Make) -> tuple[str, bytes]:
    return safetensors({"a": np.arange(300, dtype=np.float32)})


def named(digest: str, length: int) -> dict[str, str]:
    value = base64.b64encode(digest.encode()).decode()
    return {**TUS, "Upload-Length": str(length), "Upload-Metadata": f"filename dXBkYXRl,digest {value}"}


async def begin(service: Any, file: tuple[str, bytes], who: dict[str, str], **more: Any) -> httpx.Response:
    headers = {**who, **named(file[0], len(file[1])), **more.pop("headers", {})}
    answer: httpx.Response = await service.http.post("/v1/uploads", headers=headers, **more)
    return answer


async def append(service: Any, upload: str, offset: int, content: Any, who: dict[str, str]) -> httpx.Response:
    headers = {**who, **TUS, **BYTES, "Upload-Offset": str(offset)}
    answer: httpx.Response = await service.http.patch(upload, content=content, headers=headers)
    return answer


async def where(service: Any, upload: str, who: dict[str, str]) -> httpx.Response:
    answer: httpx.Response = await service.http.head(upload, headers={**who, **TUS})
    return answer


async def broken_off(service: Any, upload: str, offset: int, content: bytes, who: dict[str, str]) -> None:
    """The same, from a sender whose connection ends before the body does."""
    coming = iter([{"type": "http.request", "body": content, "more_body": True}, {"type": "http.disconnect"}])
    answers: list[Any] = []

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        answers.append(message)

    headers = {**who, **TUS, **BYTES, "Upload-Offset": str(offset)}
    scope = {
        "type": "http",
        "method": "PATCH",
        "path": upload,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("model", 80),
        "client": ("test", 1),
    }
    await service.http._transport.app(scope, receive, send)
    assert answers[0]["status"] == 400
    assert b"upload_interrupted" in answers[1]["body"]


def place(answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    return f"/v1/{answer.headers['location']}"


def partials(service: Any) -> list[Path]:
    return list((service.settings.directory / "uploads").iterdir())


async def test_a_file_in_parts(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    begun = await begin(service, small, service.alice)
    assert begun.headers["tus-resumable"] == "1.0.0"
    assert begun.headers["upload-offset"] == "0"
    upload, half = place(begun), len(content) // 2
    first = await append(service, upload, 0, content[:half], service.alice)
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(half))
    assert first.headers["upload-expires"].endswith(" GMT")
    standing = await where(service, upload, service.alice)
    assert (standing.status_code, standing.headers["upload-offset"]) == (200, str(half))
    assert standing.headers["upload-length"] == str(len(content))
    assert standing.headers["cache-control"] == "no-store"
    assert (await service.http.get(f"/v1/artifacts/{digest}", headers=service.admin)).status_code == 404
    last = await append(service, upload, half, content[half:], service.alice)
    assert (last.status_code, last.headers["upload-offset"]) == (204, str(len(content)))
    assert (await service.http.get(f"/v1/artifacts/{digest}", headers=service.alice)).content == content
    assert service.files() == [service.settings.directory / digest[:2] / digest]
    # Whoever lost the last answer finds it finished, and so does whoever begins again.
    for found in (await where(service, upload, service.alice), await begin(service, small, service.alice)):
        assert found.headers["upload-offset"] == found.headers["upload-length"] == str(len(content))
    metrics = (await service.http.get("/metrics")).text
    assert f'concilia_artifact_bytes_total{{direction="in"}} {float(len(content))}' in metrics


async def test_the_first_bytes_may_come_with_the_beginning(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    begun = await begin(service, small, service.alice, headers=BYTES, content=content[:100])
    assert begun.headers["upload-offset"] == "100"
    assert (await append(service, place(begun), 100, content[100:], service.alice)).status_code == 204
    whole = await begin(service, small, service.bob, headers=BYTES, content=content)
    assert whole.headers["upload-offset"] == str(len(content))
    assert (await service.http.get(f"/v1/artifacts/{digest}/info", headers=service.bob)).status_code == 200


async def test_the_same_upload_is_found_again(service: Any, small: tuple[str, bytes]) -> None:
    _, content = small
    first = await begin(service, small, service.alice)
    await append(service, place(first), 0, content[:77], service.alice)
    again = await begin(service, small, service.alice)
    assert place(again) == place(first)
    assert again.headers["upload-offset"] == "77"
    other = await begin(service, small, service.bob)
    assert place(other) != place(first)
    assert other.headers["upload-offset"] == "0"


async def test_what_is_said_wrongly(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    upload = place(await begin(service, small, service.alice))

    async def code(method: str, path: str, **headers: str) -> tuple[int, str]:
        answer = await service.http.request(method, path, headers={**service.alice, **headers}, content=b"x")
        assert answer.headers["tus-resumable"] == "1.0.0"
        return answer.status_code, answer.json()["code"]

    good = named(digest, len(content))
    assert await code("POST", "/v1/uploads", **{**good, "Tus-Resumable": "0.2.2"}) == (412, "tus_version_unsupported")
    assert await code("POST", "/v1/uploads", **{**good, **BYTES, "Upload-Length": "-1"}) == (400, "upload_malformed")
    assert await code("POST", "/v1/uploads", **good) == (415, "upload_type_unsupported")
    for metadata in ("", "digest", "digest !", "digest QQ==", "digest QQ==,digest QQ=="):
        said = {**good, **BYTES, "Upload-Metadata": metadata}
        assert await code("POST", "/v1/uploads", **said) == (400, "upload_malformed")
    deferred = {**good, **BYTES, "Upload-Defer-Length": "1"}
    assert await code("POST", "/v1/uploads", **deferred) == (400, "upload_malformed")
    assert await code("PATCH", upload, **TUS, **BYTES) == (400, "upload_malformed")
    assert await code("PATCH", upload, **TUS, **{"Upload-Offset": "0"}) == (415, "upload_type_unsupported")
    assert await code("PATCH", upload, **TUS, **BYTES, **{"Upload-Offset": "5"}) == (409, "offset_mismatch")
    assert await code("POST", upload, **TUS) == (400, "upload_malformed")
    assert await code("PATCH", "/v1/uploads/" + "0" * 32, **TUS, **BYTES, **{"Upload-Offset": "0"}) == (
        404,
        "upload_not_found",
    )
    too_long = await append(service, upload, 0, content + b"!", service.alice)
    assert (too_long.status_code, too_long.json()["code"]) == (413, "upload_too_long")
    large = await begin(service, (digest, bytes(65 * 2**20)), service.alice)
    assert (large.status_code, large.json()["code"]) == (413, "artifact_too_large")


async def test_more_than_was_announced_is_refused_while_it_comes(service: Any, small: tuple[str, bytes]) -> None:
    upload = place(await begin(service, small, service.alice))

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(500)

    answer = await append(service, upload, 0, endless(), service.alice)
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_long")
    assert int((await where(service, upload, service.alice)).headers["upload-offset"]) <= len(small[1])


async def test_what_is_spoken(service: Any, small: tuple[str, bytes]) -> None:
    told = await service.http.options("/v1/uploads", headers=service.alice)
    assert told.status_code == 204
    assert told.headers["tus-version"] == "1.0.0"
    assert told.headers["tus-extension"] == "creation,creation-with-upload,termination,expiration"
    assert told.headers["tus-max-size"] == str(service.settings.max_artifact_bytes)
    # Through a proxy that lets none but GET and POST pass.
    upload = place(await begin(service, small, service.alice))

    async def post(method: str, **headers: str) -> httpx.Response:
        head = {**service.alice, **TUS, "X-HTTP-Method-Override": method, **headers}
        answer: httpx.Response = await service.http.post(upload, headers=head, content=small[1][:9] if headers else b"")
        return answer

    assert (await post("PATCH", **BYTES, **{"Upload-Offset": "0"})).headers["upload-offset"] == "9"
    assert (await post("HEAD")).headers["upload-offset"] == "9"
    assert (await post("DELETE")).status_code == 204
    assert (await where(service, upload, service.alice)).status_code == 404


async def test_the_headers_of_tus_are_described(service: Any) -> None:
    paths = (await service.http.get("/openapi.json")).json()["paths"]

    def required(path: str, method: str) -> set[str]:
        given = paths[path][method]["parameters"]
        return {each["name"] for each in given if each["in"] == "header" and each["required"]}

    assert required("/v1/uploads", "post") == {"Tus-Resumable", "Upload-Length", "Upload-Metadata"}
    assert required("/v1/uploads/{upload}", "patch") == {"Tus-Resumable", "Upload-Offset"}
    assert required("/v1/uploads/{upload}", "post") == {"Tus-Resumable", "X-HTTP-Method-Override"}
    assert required("/v1/uploads/{upload}", "head") == required("/v1/uploads/{upload}", "delete") == {"Tus-Resumable"}
    told = paths["/v1/uploads/{upload}"]["patch"]["responses"]
    assert {"204", "401", "403", "404", "409", "412", "413", "415", "422", "423", "507"} <= set(told)


async def test_405_names_every_method_of_an_upload(service: Any) -> None:
    answer = await service.http.put(f"/v1/uploads/{32 * '0'}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, HEAD, PATCH, POST")


async def test_nobody_else_s_upload(service: Any, small: tuple[str, bytes]) -> None:
    upload = place(await begin(service, small, service.alice))
    await append(service, upload, 0, small[1][:50], service.alice)
    for who in (service.bob, service.coordinator, service.admin):
        assert (await where(service, upload, who)).status_code == 404
        assert (await append(service, upload, 50, small[1][50:], who)).status_code == 404
        assert (await service.http.delete(upload, headers={**who, **TUS})).status_code == 404
    for who, status in ((service.auditor, 403), (service.clinician, 403), ({}, 401)):
        assert (await begin(service, small, who)).status_code == status
        assert (await where(service, upload, who)).status_code == status
    assert (await where(service, upload, service.alice)).headers["upload-offset"] == "50"


async def test_an_upload_that_is_ended_leaves_nothing(service: Any, small: tuple[str, bytes]) -> None:
    upload = place(await begin(service, small, service.alice))
    await append(service, upload, 0, small[1][:50], service.alice)
    assert len(service.files()) == 1
    assert (await service.http.delete(upload, headers={**service.alice, **TUS})).status_code == 204
    assert service.files() == []
    assert (await where(service, upload, service.alice)).status_code == 404


@pytest.mark.parametrize(("content", "code"), [(b"other bytes", "digest_mismatch"), (b"no file", "artifact_malformed")])
async def test_bytes_that_are_refused_are_gone(service: Any, content: bytes, code: str) -> None:
    digest = hashlib.sha256(content if code == "artifact_malformed" else b"these bytes").hexdigest()
    upload = place(await begin(service, (digest, content), service.alice))
    answer = await append(service, upload, 0, content, service.alice)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert service.files() == []
    assert (await where(service, upload, service.alice)).status_code == 404


async def test_a_digest_of_another_length_is_another_file_s(service: Any, small: tuple[str, bytes]) -> None:
    assert (await service.put(*small, service.alice)).status_code == 201
    answer = await begin(service, (small[0], small[1] + b"!"), service.alice)
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")


async def test_unfinished_uploads_are_bounded_for_each_caller(serve: Any, settings: Any, safetensors: Make) -> None:
    files = [safetensors({"w": np.full(3, number, np.float32)}) for number in range(3)]
    async with serve(settings.model_copy(update={"uploads_at_once": 2})) as service:
        begun = [await begin(service, file, service.alice) for file in files]
        assert [answer.status_code for answer in begun] == [201, 201, 429]
        assert begun[2].json()["code"] == "too_many_uploads"
        assert (await begin(service, files[2], service.bob)).status_code == 201
        await append(service, place(begun[0]), 0, files[0][1], service.alice)
        assert (await begin(service, files[2], service.alice)).status_code == 201


async def test_the_reserve_stays_free(serve: Any, settings: Any, small: tuple[str, bytes]) -> None:
    async with serve(settings.model_copy(update={"reserve_bytes": 2**60})) as service:
        answer = await begin(service, small, service.alice)
        assert (answer.status_code, answer.json()["code"]) == (507, "no_space")


async def test_a_disk_that_fills_up_in_the_middle(
    serve: Any, settings: Any, small_disk: Path, safetensors: Make, small: tuple[str, bytes], monkeypatch: Any
) -> None:
    file = safetensors({"w": np.zeros(900_000, np.float32)})
    # Another writer took the room after the upload was admitted: only the kernel still knows.
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**40))
    async with serve(settings.model_copy(update={"directory": small_disk / "store"})) as service:
        upload = place(await begin(service, file, service.alice))
        answer = await append(service, upload, 0, file[1], service.alice)
        assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
        stands = await where(service, upload, service.alice)
        assert (stands.status_code, int(stands.headers["upload-offset"]) <= 2 * 2**20) == (200, True)
        info = await service.http.get(f"/v1/artifacts/{file[0]}/info", headers=service.alice)
        assert info.status_code == 404
        assert service.files() == partials(service)  # what came may be gone on with, where there is room again
        ended = await service.http.delete(upload, headers={**service.alice, **TUS})
        assert ended.status_code == 204
        assert service.files() == []
        again = place(await begin(service, small, service.alice))
        assert (await append(service, again, 0, small[1], service.alice)).status_code == 204


async def test_an_upload_that_nobody_goes_on_with_expires(serve: Any, settings: Any, small: tuple[str, bytes]) -> None:
    quick = settings.model_copy(update={"upload_keep_seconds": 0.4, "upload_sweep_seconds": 0.05})
    async with serve(quick) as service:
        upload = place(await begin(service, small, service.alice))
        for offset in range(0, 40, 10):
            assert (await append(service, upload, offset, small[1][offset : offset + 10], service.alice)).is_success
            await asyncio.sleep(0.15)  # longer than it is kept, all together
        orphan = service.settings.directory / "uploads" / ("0" * 32)
        orphan.touch()
        os.utime(orphan, (0, 0))
        while partials(service):
            await asyncio.sleep(0.02)
        assert (await where(service, upload, service.alice)).status_code == 404


async def test_a_restart_between_two_parts(serve: Any, settings: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    async with serve(settings) as service:
        upload = place(await begin(service, small, service.alice))
        await append(service, upload, 0, content[:500], service.alice)
    async with serve(settings) as service:
        assert (await where(service, upload, service.alice)).headers["upload-offset"] == "500"
        # Killed after the last byte and before the artifact was stored: asking finishes it.
        with partials(service)[0].open("ab") as file:
            seal = service.keys.of(partials(service)[0].read_bytes())
            file.write(content[500:] if seal is None else seal.at(500)(content[500:]))
        assert (await where(service, upload, service.alice)).headers["upload-offset"] == str(len(content))
        assert (await service.http.get(f"/v1/artifacts/{digest}", headers=service.alice)).content == content
        assert partials(service) == []


async def test_any_breaks_and_any_parts_make_the_same_file(service: Any, safetensors: Make) -> None:
    """Parts of any size, of which any share arrives before the line breaks; begun, asked and ended in any order."""
    loop = asyncio.get_running_loop()
    seeds = iter(range(10**6))

    async def run(steps: list[tuple[int, int, bool]]) -> None:
        digest, content = safetensors({"w": np.full(400, next(seeds), np.float64)})
        offset, upload = 0, place(await begin(service, (digest, content), service.alice))
        for size, arrives, breaks in steps:
            if offset == len(content):
                break  # finished: the service says so without a byte more, and a line that breaks breaks nothing
            part = content[offset : offset + size]
            came = part[:arrives] if breaks else part
            if breaks:
                await broken_off(service, upload, offset, came, service.alice)
            else:
                assert (await append(service, upload, offset, part, service.alice)).status_code == 204
            found = await where(service, upload, service.alice)
            # All that came stays, and nothing else is there.
            assert int(found.headers["upload-offset"]) == offset + len(came)
            offset += len(came)
        answer = await append(service, upload, offset, content[offset:], service.alice)
        assert answer.status_code == 204
        got = await service.http.get(f"/v1/artifacts/{digest}", headers=service.alice)
        assert got.content == content

    @given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900), st.booleans()), max_size=8))
    @hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def any_steps(steps: list[tuple[int, int, bool]]) -> None:
        asyncio.run_coroutine_threadsafe(run(steps), loop).result(60)

    await asyncio.to_thread(any_steps)


async def test_a_newer_request_of_the_owner_goes_on(service: Any, safetensors: Make) -> None:
    digest, content = safetensors({"w": np.arange(400_000, dtype=np.float32)})
    upload = place(await begin(service, (digest, content), service.alice))
    hanging = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield content[: 2**20]
        hanging.set()
        await asyncio.sleep(3600)

    older = asyncio.create_task(append(service, upload, 0, body(), service.alice))
    await hanging.wait()
    while not partials(service):
        await asyncio.sleep(0.01)
    offset = int((await where(service, upload, service.alice)).headers["upload-offset"])
    assert offset == 2**20
    assert (await append(service, upload, offset, content[offset:], service.alice)).status_code == 204
    answer = await older
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_taken_over")
    assert (await service.http.get(f"/v1/artifacts/{digest}", headers=service.alice)).content == content


def test_another_process_that_writes_is_said_to_be_there(tmp_path: Path, keys: Any) -> None:
    one, other = (DirectoryStore(tmp_path, 10**6, 0, keys) for _ in range(2))
    one.prepare()
    with one.resume("a" * 32) as first:
        first.write([b"abc"])
        with pytest.raises(UploadLocked):
            other.resume("a" * 32)
    with other.resume("a" * 32) as second:  # which hashes what it did not see itself
        second.write([b"def"])
        assert second.digest() == hashlib.sha256(b"abcdef").hexdigest()
    with one.resume("a" * 32) as third:
        assert third.digest() == hashlib.sha256(b"abcdef").hexdigest()
    assert one.forgotten(3600) == []
    os.utime(tmp_path / "uploads" / ("a" * 32), (time.time() - 7200,) * 2)
    assert one.forgotten(3600) == ["a" * 32]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.text(max_size=20), max_size=5))
def test_metadata_is_read_as_it_was_written(written: dict[str, str]) -> None:
    pairs = [f"{name} {base64.b64encode(value.encode()).decode()}".strip() for name, value in written.items()]
    assert tus.metadata(",".join(pairs)) == written


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=200))
def test_no_metadata_is_a_crash(text: str) -> None:
    with contextlib.suppress(UploadMalformed):
        assert isinstance(tus.metadata(text), dict)

"""The kit's clients come back when a service says so, and not at all where that is beyond their patience."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from concilia_kit import digests, http, transfer
from concilia_kit.problems import MEDIA_TYPE, Problem
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

CONTENT = b"some weights"


class Busy:
    """Says "later" to the first `times` requests; when each came (monotonic seconds)."""

    def __init__(self, status: int, retry_after: str, times: int = 1) -> None:
        self._status = status
        self._headers = {"Content-Type": MEDIA_TYPE, **({"Retry-After": retry_after} if retry_after else {})}
        self._times = times
        self.came: list[float] = []

    def refuses(self) -> bool:
        self.came.append(time.monotonic())
        return len(self.came) <= self._times

    def answer(self) -> Response:
        return JSONResponse({"code": "too_busy", "detail": "later"}, self._status, self._headers)

    def __call__(self, _request: httpx.Request) -> httpx.Response:
        if not self.refuses():
            return httpx.Response(200)
        answer = self.answer()
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=bytes(answer.body))

    def pause(self) -> float:
        return self.came[1] - self.came[0]


def to(busy: Busy) -> httpx.Client:
    return http.client("http://model", transport=httpx.MockTransport(busy))


@pytest.mark.parametrize(("method", "status"), [("GET", 429), ("POST", 429), ("GET", 503)])
def test_a_call_comes_back_when_it_was_told_to(method: str, status: int) -> None:
    busy = Busy(status, "1")
    assert http.call(to(busy), method, "/v1/models").status_code == 200
    assert busy.pause() >= 1


def test_a_post_that_counts_once_is_repeated() -> None:
    busy = Busy(503, "")
    answer = http.call(to(busy), "POST", "/v1/jobs", headers={http.IDEMPOTENCY_KEY: "one of a kind"})
    assert (answer.status_code, len(busy.came)) == (200, 2)


def test_what_may_have_been_done_is_not_repeated_whatever_is_said() -> None:
    busy = Busy(503, "1")
    with pytest.raises(Problem):
        http.call(to(busy), "POST", "/v1/models")
    assert len(busy.came) == 1


@pytest.mark.parametrize("seconds", [5.0, 0.0])
def test_who_has_no_such_patience_gives_up_at_once(seconds: float) -> None:
    busy = Busy(429, "3600")
    with pytest.raises(Problem) as caught:
        http.call(to(busy), "GET", "/v1/models", retry_seconds=seconds)
    assert (caught.value.problem_code, caught.value.headers, len(busy.came)) == (
        "too_busy",
        {"Retry-After": "3600"},
        1,
    )


def served(busy: Busy) -> FastAPI:
    """A model service that takes one upload and shows it, or says "later"."""
    app = FastAPI()
    standing = {"Upload-Offset": str(len(CONTENT)), "Location": "uploads/a"}

    @app.post("/v1/uploads")
    async def begin() -> Response:
        return busy.answer() if busy.refuses() else Response(status_code=201, headers=standing)

    @app.get("/v1/artifacts/{digest}")
    async def show() -> Response:
        return busy.answer() if busy.refuses() else Response(CONTENT)

    return app


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("patient", [True, False])
def test_a_transfer_comes_back_when_it_was_told_to(
    serve: Callable[[FastAPI], int], tmp_path: Path, direction: str, patient: bool
) -> None:
    busy = Busy(429, "1" if patient else "3600")
    client = http.client(f"http://127.0.0.1:{serve(served(busy))}")
    (tmp_path / "there").write_bytes(CONTENT)
    digest = digests.of_file(tmp_path / "there")

    def move() -> None:
        if direction == "up":
            transfer.upload(client, digest, tmp_path / "there")
        else:
            transfer.download(client, digest, tmp_path / "new")

    if patient:
        move()
        assert busy.pause() >= 1
    else:
        with pytest.raises(Problem) as caught:
            move()
        assert (caught.value.problem_status, len(busy.came)) == (429, 1)


def test_what_is_said_of_when_to_come_back() -> None:
    def said(value: str) -> float | None:
        return Problem.from_document({}, 429, httpx.Headers({"Retry-After": value})).retry_after()

    assert said("7") == 7
    assert [said(value) for value in ("", "soon", "-1", "1.5")] == [None] * 4
    in_an_hour = said(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert in_an_hour is not None
    assert 0 < in_an_hour <= 3600
    assert said("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert Problem.from_document({}, 429).retry_after() is None

"""`concilia card`, as it is typed, against an aggregator with jobs that have published a model and one that has not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia.app import app
from concilia.client import Client
from concilia.commands import models
from typer.testing import CliRunner

NEW, OLD, RUNNING = "1a" * 32, "1b" * 32, "2c" * 32
PUBLISHED = {NEW: "aa" * 32, OLD: "ab" * 32, RUNNING: None}


class Aggregator:
    """Has three jobs, the newest of which runs; a card is the name of its job."""

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/jobs":
            return httpx.Response(200, json=[self.view(job) for job in (RUNNING, NEW, OLD)])
        text = f"# {request.url.path} — «é»\n"
        return httpx.Response(200, content=text.encode(), headers={"Content-Type": "text/markdown; charset=utf-8"})

    def view(self, job: str) -> dict[str, Any]:
        return {
            "id": job,
            "spec": {"name": "j", "initial": "0" * 64},
            "phase": "finished" if PUBLISHED[job] else "training",
            "paused": False,
            "round": 1,
            "detail": "",
            "created_at": "2026-01-01T00:00:00Z",
            "created_by": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "model": PUBLISHED[job],
            "rounds": [],
        }


@pytest.fixture(autouse=True)
def aggregator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aggregator]:
    double = Aggregator()
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as http:

        class Here:
            aggregator = http

        monkeypatch.setattr(models, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        yield double


def typed(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["card", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "job"),
    [([], NEW), (["latest"], NEW), ([OLD], OLD), (["1b"], OLD), (["ab" * 32], OLD), (["aa"], NEW)],
)
def test_a_card_is_asked_for_by_job_or_model(words: list[str], job: str) -> None:
    done = typed(*words)
    assert (done.exit_code, done.stdout) == (0, f"# /v1/jobs/{job}/card — «é»\n")


@pytest.mark.parametrize(
    ("words", "code"), [("a", "ambiguous"), ("1", "ambiguous"), ("2c", "no_model"), ("f", "no_model")]
)
def test_what_is_no_published_model_or_several(words: str, code: str) -> None:
    done = typed(words)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"({code})" in done.stderr


def test_a_card_is_saved_as_it_is(tmp_path: Path) -> None:
    done = typed(OLD, "--out", tmp_path / "card.md")
    assert done.exit_code == 0
    assert PUBLISHED[OLD] in done.stdout
    assert (tmp_path / "card.md").read_bytes() == f"# /v1/jobs/{OLD}/card — «é»\n".encode()
    assert typed(OLD, "--out", tmp_path / "nowhere" / "card.md").exit_code == 2

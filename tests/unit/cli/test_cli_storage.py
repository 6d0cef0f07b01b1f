"""`concilia storage`, as it is typed, against a model service that tells what it is told to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from concilia.app import app
from concilia.client import Client
from concilia.commands import storage
from typer.testing import CliRunner

DIGEST = "ab" * 32


class Model:
    """Has a report, and files that are whole or not."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.intact = True
        self.report: dict[str, Any] = {
            "stored": [
                {"kind": "update", "files": 3, "bytes": 282_000_000},
                {"kind": "orphan", "files": 0, "bytes": 0},
            ],
            "free_bytes": 5_000_000_000,
            "keep_updates_days": 30.0,
            "keep_orphans_days": None,
            "ledger_read_at": "2026-01-02T03:04:05Z",
            "due_files": 25,
            "due_bytes": 94_000_000,
            "due": [{"digest": DIGEST, "kind": "update", "size": 94_000_000, "brought_at": "2025-11-12T00:00:00Z"}],
            "removed_files": 7,
            "removed_bytes": 1_500_000,
        }

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.raw_path.decode())
        if request.url.path == "/v1/storage":
            return httpx.Response(200, json=self.report)
        assert request.method == "POST"
        found = {"digest": DIGEST, "intact": self.intact, "checked_at": "2026-01-02T03:04:05Z"}
        return httpx.Response(200, json=found)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    double = Model()
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://model") as http:

        class Here:
            model = http

        monkeypatch.setattr(storage, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        yield double


def typed(*words: str) -> Any:
    return CliRunner().invoke(app, ["storage", *words])


def test_a_report_for_people_and_for_programs(model: Model) -> None:
    done = typed()
    assert done.exit_code == 0, done.output
    for said in (
        "282.0",
        "free: 5000.0 MB",
        "updates 30 days",
        "orphans for ever",
        "7 files, 1.5 MB",
        DIGEST,
        "24 more",
    ):
        assert said in done.output
    assert json.loads(typed("--days", "7", "--json").stdout)["due_files"] == 25
    assert model.asked == ["/v1/storage", "/v1/storage?keep_updates_days=7.0"]
    assert typed("--days", "0").exit_code == 2


def test_a_ledger_that_was_never_read(model: Model) -> None:
    model.report |= {"ledger_read_at": None, "due": [], "due_files": 0}
    assert "nothing is known of the ledger yet" in typed().output
    model.report |= {"ledger_read_at": "2026-01-02T03:04:05Z"}
    assert "next: nothing" in typed().output


def test_a_file_that_has_changed_is_an_error(model: Model) -> None:
    assert typed("check", DIGEST).exit_code == 0
    model.intact = False
    done = typed("check", DIGEST)
    assert (done.exit_code, "put aside" in done.output) == (1, True)
    assert typed("check", DIGEST, "--json").exit_code == 1
    assert typed("check", "nonsense").exit_code == 2
    assert model.asked == [f"/v1/artifacts/{DIGEST}/check"] * 3

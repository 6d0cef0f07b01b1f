"""The list of what left a hospital, as its own people read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from concilia_client_node import leaving
from concilia_client_node.store import LISTS_KEPT, NodeFolder

from .masked_rounds import ACCOUNT, Round, secure_round


@pytest.fixture
def done(consortium: Any, tmp_path: Path) -> Round:
    """A plain round's update, and what is listed of it."""
    with secure_round(consortium, tmp_path / "round") as made:
        made.task = made.task.model_copy(update={"secure": None})
        made.consortium.ask(made.hospital(), made.task)
        return made


def test_people_read_it(done: Round, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving.main(["--directory", str(done.folder / "node"), "--tensors"]) == 0
    text, sent = capsys.readouterr().out, done.masked()
    assert text.startswith(f"job {done.task.job} round 1\n")
    assert f"update's file to the model service, {done.consortium.upload_lengths[0]:,} bytes" in text
    assert f"of {sent.update.digest}" in text
    assert f"signed {sent.signature}" in text
    assert "    w float32 [6, 20]: 120 numbers, 480 bytes" in text
    assert "    n int64 []: 1 numbers, 8 bytes" in text
    assert leaving.main(["--directory", str(done.folder / "node")]) == 0
    assert "float32" not in capsys.readouterr().out


def test_programs_read_it(done: Round) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "concilia_client_node", "leaving", "--json"],
        env={**os.environ, "CONCILIA_NODE_DIRECTORY": str(done.folder / "node")},
        capture_output=True,
        text=True,
        check=True,
    )
    (told,) = map(json.loads, run.stdout.splitlines())
    file, statement = told["items"]
    assert (file["what"], statement["what"]) == ("update's file", "update's statement")
    assert file["counts"]["images"] == statement["counts"]["samples"] == 32
    assert statement["signature"] == done.masked().signature
    assert statement["counts"]["loss"] == 0.5


def test_the_last_rounds_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 6):
        path = tmp_path / "updates" / ("ab" * 32) / str(number)
        path.mkdir(parents=True)
        made = leaving.Leaving(job="ab" * 32, round=number, items=())
        (path / "leaving.json").write_text(made.model_dump_json())
        os.utime(path / "leaving.json", (number, number))
    (path / "leaving.json").write_text("{")
    os.utime(path / "leaving.json", (9, 9))
    assert leaving.main(["--directory", str(tmp_path), "--rounds", "3"]) == 0
    assert [line[-1] for line in capsys.readouterr().out.splitlines()] == ["4", "3"]


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving.main(["--directory", str(tmp_path)]) == 2
    assert "is no node's folder" in capsys.readouterr().err


def test_old_lists_go(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    folder.open()
    for number in range(LISTS_KEPT + 5):
        path = folder.leaving("ab" * 32, number)
        path.write_text("{}")
        os.utime(path, (number, number))
    folder.leaving("ab" * 32, 999)
    left = {int(path.parent.name) for path in tmp_path.glob("updates/*/*/leaving.json")}
    assert left == set(range(5, LISTS_KEPT + 5))


def test_what_is_sent_again_is_listed_once(done: Round) -> None:
    done.consortium.rounds[done.task.job, 1] = done.consortium.rounds[done.task.job, 1].model_copy(
        update={"updates": ()}
    )
    done.consortium.ask(done.hospital(), done.task)
    path = done.folder / "node" / "updates" / done.task.job / "1" / "leaving.json"
    items = json.loads(path.read_bytes())["items"]
    assert [each["what"] for each in items] == ["update's file", "update's statement"]
    assert len(done.consortium.submissions) == 2
    assert ACCOUNT.address not in path.read_text(), "whose it is, who has the disk knows"

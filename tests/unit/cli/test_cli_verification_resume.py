"""A verification that is interrupted goes on where it was, and believes nothing that lies in its folder unchecked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia.connection import UsageError
from concilia.verification import chain, kept
from concilia.verification.evidence import Evidence, examine
from concilia.verification.kept import Kept, KeptNode, KeptSource
from concilia.verification.node import Node
from concilia_aggregator.verification.sources import FolderSource
from concilia_kit import keystore
from concilia_kit.problems import Unavailable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

COMMAND = """
import httpx
from concilia import connection
# Signing in has tests of its own.
connection.http.client = lambda url, auth=None, authorities=None: httpx.Client(base_url=url)
from concilia.app import main
main()
"""


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


class Served:
    """A node and a model service in one, over HTTP. From call number `hold` of a kind on it answers nothing."""

    def __init__(self, job: Any, double: Any) -> None:
        self.asked: list[tuple[str, str]] = []
        self.hold: tuple[str, int] | None = None
        self.holding, self.released = threading.Event(), threading.Event()
        served, one_at_a_time = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                call = json.loads(body)
                with one_at_a_time:
                    answer = double.answer(httpx.Request("POST", "http://node", content=body))
                what = call["params"][0] if call["params"] else ""
                name = what["fromBlock"] if isinstance(what, dict) and "fromBlock" in what else str(what)
                if "result" in answer.json():
                    self._send(call["method"], name, answer.content)
                else:
                    self._send("refused", name, answer.content)

            def do_GET(self) -> None:
                digest = self.path.rpartition("/")[2]
                self._send("artifact", digest, job.path(digest).read_bytes())

            def _send(self, kind: str, what: str, content: bytes) -> None:
                served.asked.append((kind, what))
                if served.hold is not None and kind == served.hold[0] and served.count(kind) >= served.hold[1]:
                    served.asked.pop()
                    served.holding.set()
                    served.released.wait(60)
                with contextlib.suppress(OSError):  # the other side was killed
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, kind: str) -> int:
        return sum(each == kind for each, _ in self.asked)

    def of(self, kind: str) -> set[str]:
        return {what for each, what in self.asked if each == kind}

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def served(finished: Any, jobs_module: Any) -> Iterator[Served]:
    made = Served(finished, jobs_module.NodeDouble(finished.ledger.chain.web3))
    yield made
    made.close()


@pytest.fixture
def start(served: Served, finished: Any, tmp_path: Path) -> Any:
    """The command as a process, by a node and a model service alone."""
    keystore.create(tmp_path / "key.json", tmp_path / "key.password")
    urls = {f"{name}_url": "http://127.0.0.1:1" for name in ("auth", "model", "chain", "aggregator")}
    config = tmp_path / "concilia.json"
    config.write_text(json.dumps(urls | {"keystore": "key.json", "password_file": "key.password"}))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    arguments = ["verify", finished.job, "--rpc", served.url, "--artifacts", served.url, "--config", str(config)]
    folder = ["--resume", str(tmp_path / "folder"), "--json"]

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", COMMAND, *arguments, *folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # what runs in the background inherits that interrupts are ignored; a terminal's does not
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return begin


@pytest.mark.parametrize(
    ("kind", "number", "how"),
    [
        ("eth_getLogs", 3, signal.SIGINT),
        ("artifact", 4, signal.SIGKILL),
    ],
)
def test_what_was_interrupted_goes_on_where_it_was(
    start: Any, served: Served, tmp_path: Path, kind: str, number: int, how: signal.Signals
) -> None:
    served.hold = (kind, number)
    with start() as process:
        assert served.holding.wait(60), process.stderr.read()
        process.send_signal(how)
        process.communicate(timeout=60)
    assert process.returncode == (130 if how is signal.SIGINT else -how)
    before = {each: served.of(each) for each in ("eth_getLogs", "eth_getTransactionByHash", "artifact")}
    # what is kept is known to be whole once something else is asked for: the last answer may have been on its way
    assert len(before[kind]) == number - 1
    served.hold = None
    served.released.set()
    served.asked.clear()
    with start() as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    verdict = json.loads(out)
    assert verdict["ok"]
    assert (verdict["rounds"], verdict["signatures"], verdict["updates"]) == (2, 5, 5)
    for each, known in before.items():
        assert not served.of(each) & known, f"{each} was asked again"
    assert not list((tmp_path / "folder" / "work").glob("*"))


def test_one_verification_a_folder_at_a_time(tmp_path: Path) -> None:
    with Kept(tmp_path / "f"), pytest.raises(UsageError, match="another verification"), Kept(tmp_path / "f"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="nothing can be kept"), Kept(tmp_path / "file"):
        pass


# ------------------------------------------------------------------------------------ nothing in the folder is believed


@pytest.fixture
def double(finished: Any, jobs_module: Any) -> Any:
    return jobs_module.NodeDouble(finished.ledger.chain.web3)


def read(finished: Any, double: Any, folder: Path, job: Any = None) -> Evidence:
    double.asked.clear()
    with Kept(folder) as opened, closing(Node("http://node/", httpx.MockTransport(double.answer))) as node:
        return chain.read(KeptNode(node, opened), (job or finished).job, None, None, quiet)


@pytest.fixture
def folder(finished: Any, double: Any, tmp_path: Path) -> Path:
    """A folder in which all was kept."""
    read(finished, double, tmp_path / "f")
    return tmp_path / "f"


def test_what_is_kept_is_not_asked_again_and_the_same(
    finished: Any, double: Any, folder: Path, evidence: Evidence
) -> None:
    again = read(finished, double, folder)
    assert "eth_getLogs" not in double.asked
    assert "eth_getTransactionByHash" not in double.asked
    assert (again.of_job is not None, list(again.of_job())) == (True, list(evidence.of_job()))
    assert again.calldata == evidence.calldata
    assert examine(again, FolderSource(finished.store), quiet).ok


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bit_of_the_records_changes_nothing(
    finished: Any, double: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """It is as if the record were not there."""
    expected = read(finished, double, folder)
    copy = tmp_path_factory.mktemp("copy") / "f"
    shutil.copytree(folder, copy)
    records = bytearray((copy / "records.jsonl").read_bytes())
    bit = data.draw(st.integers(0, 8 * len(records) - 1))
    records[bit // 8] ^= 1 << bit % 8
    (copy / "records.jsonl").write_bytes(records)
    assert read(finished, double, copy) == expected


@pytest.mark.parametrize("spoil", [b"", b"\xff" * 100, b"{}\n[]\n\n" + b"[" * 1000, b'{"seal": 1, "body": 2}\n'])
def test_a_file_of_records_that_is_none(finished: Any, double: Any, folder: Path, spoil: bytes) -> None:
    expected = read(finished, double, folder)
    (folder / "records.jsonl").write_bytes(spoil)
    assert read(finished, double, folder) == expected
    assert "eth_getLogs" in double.asked
    assert read(finished, double, folder) == expected
    assert "eth_getLogs" not in double.asked, "what is appended to rubbish counts"


def test_a_folder_that_somebody_else_sealed(
    finished: Any, double: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hands a folder on cannot leave an expulsion out of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    read(finished, double, folder)
    assert "eth_getLogs" in double.asked
    monkeypatch.setattr(kept, "_KEY_BYTES", 16)
    with pytest.raises(UsageError, match="is no key"):
        read(finished, double, folder)


def test_what_one_node_told_is_not_anothers_word(finished: Any, double: Any, folder: Path) -> None:
    double.asked.clear()
    other = Node("http://another/", httpx.MockTransport(double.answer))
    with Kept(folder) as opened, closing(other) as node:
        chain.read(KeptNode(node, opened), finished.job, None, None, quiet)
    assert "eth_getLogs" in double.asked
    assert "eth_getTransactionByHash" in double.asked


def test_another_chain_of_the_same_number(
    finished: Any, double: Any, folder: Path, jobs_module: Any, tmp_path: Path
) -> None:
    """Started anew, with the same contract's address and the same job: other blocks, by their hashes."""
    (tmp_path / "store").mkdir()
    other = jobs_module.FinishedJob(tmp_path / "store", merkle=frozenset({1})).run()
    assert other.ledger.contract.address == finished.ledger.contract.address
    again = read(other, jobs_module.NodeDouble(other.ledger.chain.web3), folder)
    assert 1 in again.commitments()
    with closing(other.node()) as node:
        assert again == chain.read(node, other.job, None, None, quiet)


def test_a_chain_that_goes_on_is_read_on(jobs_module: Any, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    job = jobs_module.FinishedJob(tmp_path / "store")
    job.ledger.enrol(*(each.address for each in jobs_module.HOSPITALS))
    base = job.put(jobs_module.tensors(0))
    closed = job.round(1, base, jobs_module.HOSPITALS, None)
    double = jobs_module.NodeDouble(job.ledger.chain.web3)
    first = read(job, double, tmp_path / "f")
    job.ledger.send("publishModel", bytes.fromhex(job.job), bytes.fromhex(closed))
    second = read(job, double, tmp_path / "f")
    assert second.events[: len(first.events)] == first.events
    assert second.events[-1].name == "ModelPublished"
    assert "eth_getLogs" in double.asked


class Counted:
    """A store that counts what is fetched, and may tell rubbish."""

    def __init__(self, store: Path) -> None:
        self._files = FolderSource(store)
        self.fetched: list[str] = []
        self.rubbish = False

    def fetch(self, digest: str, folder: Path) -> Path:
        self.fetched.append(digest)
        target = folder / digest
        found = self._files.fetch(digest, folder)
        target.write_bytes(b"rubbish" if self.rubbish else found.read_bytes())
        return target


def test_a_kept_file_that_was_changed_is_fetched_again(finished: Any, evidence: Evidence, tmp_path: Path) -> None:
    source = Counted(finished.store)

    def verify() -> bool:
        source.fetched.clear()
        with Kept(tmp_path / "f") as opened:
            return examine(evidence, KeptSource(source, opened), quiet, opened.work, folds=opened).ok

    assert verify()
    assert sorted(source.fetched) == evidence.artifacts()
    assert verify()
    assert source.fetched == []
    changed = evidence.artifacts()[3]
    path = tmp_path / "f" / "artifacts" / changed[:2] / changed
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verify()
    assert source.fetched == [changed]


def test_rubbish_is_found_and_not_kept(finished: Any, evidence: Evidence, tmp_path: Path) -> None:
    source = Counted(finished.store)
    source.rubbish = True
    with Kept(tmp_path / "f") as opened:
        found = examine(evidence, KeptSource(source, opened), quiet, opened.work, folds=opened)
    assert {each.digest for each in found.findings} == set(evidence.artifacts())
    assert not [each for each in (tmp_path / "f").glob("artifacts/*/*") if each.is_file()]
    source.rubbish = False
    with Kept(tmp_path / "f") as opened:
        assert examine(evidence, KeptSource(source, opened), quiet, opened.work, folds=opened).ok


def test_a_store_that_does_not_answer_is_no_finding(evidence: Evidence, tmp_path: Path) -> None:
    class Away:
        def fetch(self, digest: str, folder: Path) -> Path:
            raise Unavailable("away")

    with Kept(tmp_path / "f") as opened, pytest.raises(Unavailable):
        examine(evidence, KeptSource(Away(), opened), quiet, opened.work)


def test_a_fold_that_was_done_is_remembered_by_what_went_into_it(
    finished: Any, evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify() -> Any:
        with Kept(tmp_path / "f") as opened:
            return examine(evidence, FolderSource(finished.store), quiet, opened.work, folds=opened)

    first = verify()
    assert first.ok
    calls: list[Any] = []

    def fold(*given: Any, **_: Any) -> str:
        calls.append(given)
        return "0" * 64

    monkeypatch.setattr("concilia_aggregator.verification.verifier.fold", fold)
    assert verify() == first
    assert calls == []
    records = (tmp_path / "f" / "records.jsonl").read_bytes()
    (tmp_path / "f" / "records.jsonl").write_bytes(records.replace(b"0", b"1"))
    assert [each.what for each in verify().findings] == [f"folded again it is {'0' * 64}"] * 2
    assert len(calls) == 2


def test_a_record_too_long_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_LINE", 200)
    with Kept(tmp_path / "f") as opened:
        opened.remember("long", "x" * 300)
        opened.remember("short", "x")
        assert (opened.recall("long"), opened.recall("short")) == (None, "x")
        opened.remember("short", "y")
    with Kept(tmp_path / "f") as opened:
        assert (opened.recall("long"), opened.recall("short")) == (None, "y")

"""A job verified from a node alone: a real EVM behind JSON-RPC, and no Concilia service anywhere."""

from __future__ import annotations

import json
import os
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia.app import app
from concilia.commands import evidence as asking
from concilia.connection import UsageError
from concilia.verification import chain, decoding
from concilia.verification.evidence import Evidence, examine
from concilia.verification.node import Node, NodeProblem
from concilia_aggregator.verification.roles import RoleChanged, RoleHistory
from concilia_aggregator.verification.sources import FolderSource
from concilia_kit import keystore
from concilia_kit.sealing import StoreKey
from concilia_kit.wire.verification import Verdict
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

ROOT = Path(__file__).parents[3]


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def read(job: Any, **kwargs: Any) -> Evidence:
    with closing(job.node()) as node:
        return chain.read(node, job.job, None, None, quiet, **kwargs)


def verdict(job: Any, evidence: Evidence) -> Verdict:
    return examine(evidence, FolderSource(job.store), quiet)


def without(evidence: Evidence, *gone: int) -> Evidence:
    kept = tuple(event for index, event in enumerate(evidence.events) if index not in gone)
    return evidence.model_copy(update={"events": kept, "blocks": None})


def test_a_finished_job_verifies_from_the_chain_and_the_files(finished: Any) -> None:
    found = verdict(finished, read(finished))
    assert found.ok, found.findings
    assert (found.rounds, found.updates, found.signatures, found.rejected) == (2, 5, 5, 1)
    assert found.published == finished.published
    (note,) = found.notes
    assert "metrics of 5 updates" in note


def test_what_is_read_ends_with_the_job(finished: Any) -> None:
    everything = read(finished, everything=True)
    assert everything.events[-1].name == "ModelPublished"
    assert {event.name for event in everything.events} > {event.name for event in read(finished).events}


def test_a_node_that_tells_no_logs_has_them_in_its_receipts(finished: Any, jobs_module: Any) -> None:
    """Like the door for wallets of the chain service."""
    double = jobs_module.NodeDouble(finished.ledger.chain.web3, tells_logs=False)
    with closing(Node("http://node/", httpx.MockTransport(double.answer))) as node:
        assert chain.read(node, finished.job, None, None, quiet) == read(finished)


def test_the_abi_is_that_of_the_contract() -> None:
    installed = ROOT / "libs" / "cli" / "concilia" / "ConciliaLedger.json"
    assert installed.read_bytes() == (ROOT / "contracts" / "build" / "ConciliaLedger.json").read_bytes()


def test_a_job_that_is_nowhere(finished: Any) -> None:
    with closing(finished.node()) as node, pytest.raises(UsageError, match="no contract on this chain has a job"):
        chain.read(node, "0" * 64, None, None, quiet)
    with closing(finished.node()) as node, pytest.raises(UsageError, match="there is no contract at"):
        chain.read(node, finished.job, "0x" + "12" * 20, None, quiet)
    address = finished.ledger.contract.address
    with closing(finished.node()) as node, pytest.raises(UsageError, match="has no job"):
        chain.read(node, "0" * 64, address, None, quiet)


def test_two_contracts_with_one_job_must_be_told_apart(jobs_module: Any, tmp_path: Path) -> None:
    first = jobs_module.FinishedJob(tmp_path).run(rounds=1)
    other = jobs_module.FinishedJob(tmp_path, jobs_module.harness.Ledger(first.ledger.chain)).run(rounds=1)
    with pytest.raises(UsageError, match="name one with --contract"):
        read(first)
    with closing(first.node()) as node:
        chosen = chain.read(node, first.job, other.ledger.contract.address, None, quiet)
    assert verdict(first, chosen).ok


def test_a_chain_that_is_reorganised_meanwhile_is_not_believed(finished: Any, jobs_module: Any) -> None:
    double = jobs_module.NodeDouble(finished.ledger.chain.web3)

    def answer(request: httpx.Request) -> httpx.Response:
        told: httpx.Response = double.answer(request)
        if double.asked.count("eth_getBlockByNumber") > 1:
            return httpx.Response(200, json=told.json() | {"result": {"hash": "0x" + "77" * 32}})
        return told

    node = Node("http://node/", httpx.MockTransport(answer))
    with closing(node), pytest.raises(NodeProblem, match="reorganised"):
        chain.read(node, finished.job, None, None, quiet)


@pytest.mark.parametrize("answer", [httpx.Response(502, text="no"), httpx.Response(200, json=["?"])])
def test_a_node_that_makes_no_sense_is_a_problem(answer: httpx.Response, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("concilia.verification.node._PAUSE", 0)
    node = Node("http://secret@node/", httpx.MockTransport(lambda _: answer))
    with closing(node), pytest.raises(NodeProblem) as error:
        node.chain_id()
    assert "secret" not in str(error.value)


def test_a_signer_without_the_role_at_that_block_is_named(finished: Any, evidence: Evidence, jobs_module: Any) -> None:
    """The grant of the third hospital's role is missing: both its updates count for nothing."""
    hospital = jobs_module.HOSPITALS[2].address
    index = next(i for i, each in enumerate(evidence.events) if each.arguments.get("account") == hospital)
    found = verdict(finished, without(evidence, index)).findings
    assert [(each.round, each.hospital) for each in found] == [(1, hospital), (2, hospital)]
    assert all("did not hold the hospital role" in each.what for each in found)


def test_an_update_after_the_role_was_taken_is_named(finished: Any, evidence: Evidence, jobs_module: Any) -> None:
    """The expulsion of the second hospital is moved to before its update."""
    events = list(evidence.events)
    revoked = next(event for event in events if event.name == "RoleRevoked")
    opened = next(i for i, event in enumerate(events) if event.name == "RoundOpened")
    moved = revoked.model_copy(update={"block": events[opened].block, "log_index": events[opened].log_index + 1})
    events.remove(revoked)
    events.insert(opened + 1, moved)
    changed = evidence.model_copy(update={"events": tuple(events), "blocks": None})
    (finding,) = verdict(finished, changed).findings
    assert (finding.round, finding.hospital) == (1, jobs_module.HOSPITALS[1].address)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), unique_by=lambda each: each[:2]))
def test_the_role_is_that_of_the_last_change_before(changes: list[tuple[int, int, bool]]) -> None:
    history = RoleHistory(RoleChanged(block, index, "0xA", granted) for block, index, granted in changes)
    for place in ((block, index) for block in range(7) for index in range(5)):
        before = [granted for block, index, granted in sorted(changes) if (block, index) < place]
        assert history.held("0xA", *place) == (before[-1] if before else False)
    assert not history.held("0xB", 9, 9)


def test_calldata_is_read_also_where_something_wraps_the_call(evidence: Evidence) -> None:
    assert evidence.calldata is not None
    for calldata in evidence.calldata.values():
        raw = bytes.fromhex(calldata[2:])
        plain = list(decoding.submissions(raw))
        assert plain
        assert list(decoding.submissions(b"\xac\x96\x50\xd8" + bytes(99) + raw + bytes(7))) == plain


def test_a_contract_wallet_is_asked_as_it_was_at_that_block(unfinished: Any, jobs_module: Any) -> None:
    ledger, owner = unfinished.ledger, Account.from_key(b"\x07" * 32)
    wallet = ledger.chain.deploy("TestWallet", owner.address)
    ledger.enrol(wallet.address)
    base = unfinished.put(jobs_module.tensors(0))
    job, digest = bytes.fromhex(unfinished.job), unfinished.put(jobs_module.tensors(1))
    ledger.open(job, bytes.fromhex(base))
    fields = {"digest": bytes.fromhex(digest), "samples": 3, "hospital": wallet.address}
    ledger.submit(ledger.update(owner, job, bytes.fromhex(base), **fields))
    published = unfinished.close(1, [jobs_module.Contribution(wallet.address, digest, 3)])
    ledger.send("publishModel", job, bytes.fromhex(published))

    evidence = read(unfinished)
    found = verdict(unfinished, evidence)
    assert found.ok, found.findings
    assert found.signatures == 0
    assert any("contract wallets" in note for note in found.notes)

    refused = tuple(item.model_copy(update={"wallet": False}) for item in evidence.updates)
    (finding,) = verdict(unfinished, evidence.model_copy(update={"updates": refused})).findings
    assert (finding.round, finding.hospital) == (1, wallet.address)
    # in a bundle that shows no blocks, that a wallet answered is anybody's word
    offline = examine(evidence, FolderSource(unfinished.store), quiet, offline=True)
    assert [each.hospital for each in offline.findings] == [wallet.address]


@pytest.fixture
def run(finished: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, its node the finished job's."""
    monkeypatch.setattr(asking, "Node", lambda _url: finished.node())
    return lambda *arguments: CliRunner().invoke(app, ["verify", *map(str, arguments)])


def test_the_command_needs_no_server(run: Any, finished: Any, tmp_path: Path) -> None:
    told = run(finished.job, "--rpc", "http://node", "--artifacts", finished.store, "--config", tmp_path / "none")
    assert told.exit_code == 0, told.output
    assert "verified · 2 rounds folded again, 5 updates (1 rejected), 5 signatures" in told.output
    assert finished.ledger.contract.address in told.output

    digests_only = run(finished.job, "--rpc", "http://node", "--without-artifacts")
    assert digests_only.exit_code == 0
    assert "models not looked at" in digests_only.output


def test_the_command_ends_with_1_where_a_file_is_not_what_was_signed(run: Any, finished: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    told = run(finished.job, "--rpc", "http://node", "--artifacts", empty)
    assert told.exit_code == 1
    assert "its file cannot be had" in told.output


def test_a_folder_of_sealed_files_is_not_taken_for_one_of_changed_files(
    run: Any, finished: Any, tmp_path: Path
) -> None:
    """Neither is it bundled."""
    secret = os.urandom(32)
    key = StoreKey(secret)
    for path in finished.store.rglob("*"):
        if path.is_file():
            seal = key.seal(bytes(16))
            there = tmp_path / "sealed" / path.relative_to(finished.store)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(seal.header + seal.at(0)(path.read_bytes()))
    asked = [finished.job, "--rpc", "http://node", "--artifacts", tmp_path / "sealed"]
    (tmp_path / "key").write_text(secret.hex())
    (tmp_path / "other").write_text(os.urandom(32).hex())
    out = tmp_path / "bundle.zip"
    assert run(*asked, "--sealing-key", tmp_path / "key").exit_code == 0
    made = CliRunner().invoke(
        app, ["bundle", *map(str, asked), "--sealing-key", f"{tmp_path / 'key'}", "--out", f"{out}"]
    )
    assert made.exit_code == 0, made.output
    assert CliRunner().invoke(app, ["verify", "--offline", str(out)]).exit_code == 0
    out.unlink()
    assert "sealing_key_unknown" in run(*asked, "--sealing-key", tmp_path / "other").output
    assert run(*asked, "--sealing-key", tmp_path / "none").exit_code == 2
    assert run(finished.job, "--rpc", "http://node", "--sealing-key", tmp_path / "key").exit_code == 2
    for told in (run(*asked), CliRunner().invoke(app, ["bundle", *map(str, asked), "--out", str(out)])):
        assert told.exit_code == 1
        assert "sealing_key_unknown" in told.output
        assert key.id.hex() in told.output
        assert "the model service, which has it, gives the files" in " ".join(told.output.split())
        assert "another digest" not in told.output
    assert not out.exists()


def test_files_may_come_from_a_model_service(
    run: Any, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed in with the connection's key; the address is the option's."""
    asked: list[str] = []

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = finished.path(self.path.rpartition("/")[2]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    def client(url: str, auth: httpx.Auth | None = None, authorities: object = None) -> httpx.Client:
        del auth, authorities  # signing in and trust have tests of their own
        return httpx.Client(base_url=url)

    monkeypatch.setattr("concilia.connection.http.client", client)
    keystore.create(tmp_path / "key.json", tmp_path / "key.password")
    urls = {f"{name}_url": "http://elsewhere" for name in ("auth", "model", "chain", "aggregator")}
    config = tmp_path / "concilia.json"
    config.write_text(json.dumps(urls | {"keystore": "key.json", "password_file": "key.password"}))
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as model:
        threading.Thread(target=model.serve_forever).start()
        address = f"http://127.0.0.1:{model.server_port}"
        told = run(finished.job, "--rpc", "http://node", "--artifacts", address, "--config", config)
        model.shutdown()
    assert told.exit_code == 0, told.output
    assert asked
    assert all(path.startswith("/v1/artifacts/") for path in asked)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["latest", "--rpc", "http://node", "--without-artifacts"], "whole id"),
        (["0" * 64, "--rpc", "node:8545", "--without-artifacts"], "begins with http"),
        (["0" * 64, "--rpc", "http://node"], "say where the model files are"),
        (["0" * 64, "--rpc", "http://node", "--artifacts", "/nowhere"], "no folder"),
        (["0" * 64, "--rpc", "http://node", "--artifacts", "http://m", "--config", "/nowhere"], "is missing"),
        (["0" * 64, "--rpc", "http://node", "--artifacts", "/", "--without-artifacts"], "exclude each other"),
        (["0" * 64, "--rpc", "http://node", "--without-artifacts", "--contract", "0x12"], "no address"),
        (["0" * 64, "--rpc", "http://node", "--without-artifacts"], "no contract on this chain"),
        (["0" * 64, "--contract", "0x" + "12" * 20], "go with --rpc"),
        (["--offline", "x", "--rpc", "http://node"], "--offline asks no chain"),
        (["--keystore", "x"], "go together"),
    ],
)
def test_what_cannot_be_asked_ends_with_2(run: Any, arguments: list[str], words: str) -> None:
    told = run(*arguments)
    assert told.exit_code == 2, told.output
    assert words in " ".join(told.output.split())

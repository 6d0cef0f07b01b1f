"""Merkle rounds from the chain and a document of leaves: no Concilia service, and no bit of it can be turned."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pymerkle
import pytest
from concilia.app import app
from concilia.commands import evidence as asking
from concilia.commands import verification
from concilia.connection import UsageError
from concilia.verification import bundle as bundles
from concilia.verification import chain, leaves, report, services
from concilia.verification.bundle import Bundle
from concilia.verification.evidence import Evidence, examine
from concilia.verification.leaves import Leaf
from concilia_aggregator.verification.sources import FolderSource
from concilia_kit import merkle
from concilia_kit.wire.chain import LedgerJob, LedgerRound, LedgerUpdate, RoundStatus
from concilia_kit.wire.verification import Verdict
from eth_account import Account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

Placed = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def verdict(job: Any, evidence: Evidence, *, offline: bool = True) -> Verdict:
    return examine(evidence, FolderSource(job.store), quiet, offline=offline)


def places(found: Verdict) -> set[tuple[int, str | None]]:
    return {(each.round, each.hospital) for each in found.findings}


def flipped(data: bytes, bit: int) -> bytes:
    turned = bytearray(data)
    turned[bit // 8] ^= 1 << bit % 8
    return bytes(turned)


@pytest.fixture(scope="session")
def merkle_bundle(merkle_job: Any, merkle_evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merkle") / "job.zip"
    assert bundles.write(merkle_evidence, FolderSource(merkle_job.store), path, quiet) == 0
    return path


@pytest.fixture(scope="session")
def leaves_file(merkle_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("leaves") / "leaves.json"
    path.write_bytes(merkle_job.document().encode())
    return path


@pytest.fixture
def run(merkle_job: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, its node the Merkle job's."""
    monkeypatch.setattr(asking, "Node", lambda _url: merkle_job.node())

    def invoke(name: str, *arguments: object) -> Any:
        told = CliRunner().invoke(app, [name, *map(str, arguments)])
        assert isinstance(told.exception, SystemExit | None), told.exception
        return told

    return invoke


def test_a_merkle_job_verifies_from_the_chain_and_its_leaves(merkle_job: Any, merkle_evidence: Evidence) -> None:
    found = verdict(merkle_job, merkle_evidence, offline=False)
    assert found.ok, found.findings
    assert (found.rounds, found.updates, found.signatures, found.rejected) == (2, 5, 5, 1)
    assert merkle_evidence.updates == ()


def test_the_root_on_the_chain_is_that_of_somebody_elses_implementation(merkle_evidence: Evidence) -> None:
    for number, event in merkle_evidence.commitments().items():
        oracle = pymerkle.InmemoryTree(algorithm="sha256")
        for leaf in merkle_evidence.leaves or ():
            if leaf.update.round == number:
                oracle.append_entry(merkle.update_data(leaf.update, merkle_evidence.domain, leaf.signature))
        assert event.arguments["root"] == oracle.get_root().hex()


def test_without_leaves_each_round_is_a_finding(merkle_job: Any, run: Any) -> None:
    told = run("verify", merkle_job.job, "--rpc", "http://node", "--artifacts", merkle_job.store)
    assert told.exit_code == 1
    assert told.output.count("its leaves are needed") == 2
    assert "without --leaves" in told.output


def test_leaves_from_a_file_an_address_and_a_bundle(
    merkle_job: Any, run: Any, leaves_file: Path, merkle_bundle: Path, served: str
) -> None:
    for where in (leaves_file, merkle_bundle, served):
        told = run("verify", merkle_job.job, "--rpc", "http://node", "--artifacts", merkle_job.store, "--leaves", where)
        assert told.exit_code == 0, told.output
        assert "2 rounds folded again, 5 updates (1 rejected), 5 signatures" in told.output


@pytest.fixture
def served(leaves_file: Path) -> Iterator[str]:
    """A plain HTTP server with the document, and nothing elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/leaves.json"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(leaves_file.read_bytes() if found else b"")

        def log_message(self, *_: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/leaves.json"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"leaves": [{}]}', b"\xff"])
def test_what_holds_no_leaves_ends_with_2(merkle_job: Any, run: Any, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_bytes(content)
    told = run("verify", merkle_job.job, "--rpc", "http://n", "--without-artifacts", "--leaves", tmp_path / "l.json")
    assert told.exit_code == 2
    assert "holds no leaves" in told.output


def test_leaves_that_cannot_be_had_end_with_2(merkle_job: Any, run: Any, served: str, monkeypatch: Any) -> None:
    chosen = ["verify", merkle_job.job, "--rpc", "http://node", "--without-artifacts", "--leaves"]
    for where, words in (
        ("/nowhere", "cannot be read"),
        (served + "x", "answers HTTP 404"),
        ("http://127.0.0.1:1/", "does not answer"),
    ):
        told = run(*chosen, where)
        assert (told.exit_code, words in told.output) == (2, True), told.output
    monkeypatch.setattr(leaves, "MOST_BYTES", 10)
    assert "too large" in run(*chosen, served).output


def test_leaves_of_another_job_or_contract_end_with_2(merkle_job: Any, merkle_evidence: Evidence) -> None:
    document = merkle_job.document()
    for changed in (
        document.model_copy(update={"job": "0" * 64}),
        document.model_copy(update={"domain": document.domain.model_copy(update={"chain_id": 5})}),
    ):
        with pytest.raises(UsageError, match="these are leaves of job"):
            merkle_evidence.with_leaves(changed)


# ---------------------------------------------------------------------------------------------------------- bundles


def test_a_bundle_carries_the_leaves(merkle_bundle: Path, merkle_job: Any, merkle_evidence: Evidence, run: Any) -> None:
    with Bundle(merkle_bundle) as opened:
        assert opened.evidence == merkle_evidence
        assert set(opened.manifest.artifacts) == {file.name for file in merkle_job.store.glob("??/*")}
    told = run("verify", "--offline", merkle_bundle)
    assert told.exit_code == 0, told.output
    assert "5 signatures" in told.output


def test_a_bundle_without_leaves_takes_them_from_elsewhere(
    merkle_job: Any, run: Any, leaves_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "thin.zip"
    made = run("bundle", merkle_job.job, "--rpc", "http://node", "--artifacts", merkle_job.store, "--out", path)
    assert made.exit_code == 0
    assert run("verify", "--offline", path).output.count("its leaves are needed") == 2
    # the files of updates, which nothing named, are the store's
    given = run("verify", "--offline", path, "--leaves", leaves_file, "--artifacts", merkle_job.store)
    assert given.exit_code == 0, given.output
    assert run("verify", "--offline", path, "--leaves", path).exit_code == 2


@Placed
@given(st.data())
def test_any_bit_of_a_leaf_in_a_bundle_sealed_anew(
    merkle_job: Any, merkle_evidence: Evidence, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whoever turns it also writes a manifest that fits. All of a leaf that is said twice is bound twice."""
    told = list(merkle_evidence.leaves or ())
    place = data.draw(st.integers(0, len(told) - 1))
    leaf = told[place]
    member = data.draw(st.sampled_from(["signature", "digest", "metrics", "base", "job", "samples", "round", "index"]))
    if member == "signature":
        bit = data.draw(st.integers(0, 8 * 65 - 1))
        turned = leaf.model_copy(update={"signature": "0x" + flipped(bytes.fromhex(leaf.signature[2:]), bit).hex()})
    elif member == "index":
        turned = leaf.model_copy(update={"index": leaf.index ^ (1 << data.draw(st.integers(0, 31)))})
    else:
        old = getattr(leaf.update, member)
        bit = data.draw(st.integers(0, 31 if isinstance(old, int) else 255))
        new = old ^ (1 << bit) if isinstance(old, int) else flipped(bytes.fromhex(old), bit).hex()
        turned = leaf.model_copy(update={"update": leaf.update.model_copy(update={member: new})})
    told[place] = turned
    path = tmp_path_factory.mktemp("leaf") / "b.zip"
    changed = merkle_evidence.model_copy(update={"leaves": tuple(told)})
    bundles.write(changed, FolderSource(merkle_job.store), path, quiet)
    command = CliRunner().invoke(app, ["verify", "--offline", str(path)])
    if command.exit_code == 2:
        assert "the bundle is damaged" in command.output  # round 0, or 2**32 and above, is no round's number
        assert member == "round"
        return
    assert command.exit_code == 1
    assert {(leaf.update.round, leaf.update.hospital), (turned.update.round, leaf.update.hospital)} & places(
        verdict(merkle_job, changed)
    )


@Placed
@given(st.data())
def test_any_bit_of_the_commitments_events(merkle_job: Any, merkle_evidence: Evidence, data: st.DataObject) -> None:
    """Also where no headers are in the bundle: what is under the root speaks for itself, and the count for the fold."""
    names = {"UpdatesCommitted", "LeafRejected", "UpdateRejected"}
    index = data.draw(st.sampled_from([i for i, each in enumerate(merkle_evidence.events) if each.name in names]))
    event = merkle_evidence.events[index]
    key = {"UpdatesCommitted": ["root", "count"], "LeafRejected": ["index"], "UpdateRejected": ["round"]}[event.name]
    name = data.draw(st.sampled_from(key))
    old = event.arguments[name]
    bit = data.draw(st.integers(0, 31 if isinstance(old, int) else 255))
    new = old ^ (1 << bit) if isinstance(old, int) else flipped(bytes.fromhex(old), bit).hex()
    turned = event.model_copy(update={"arguments": {**event.arguments, name: new}})
    events = (*merkle_evidence.events[:index], turned, *merkle_evidence.events[index + 1 :])
    for blocks in (None, merkle_evidence.blocks):
        changed = merkle_evidence.model_copy(update={"events": events, "blocks": blocks})
        assert {event.round, turned.round} & {round_ for round_, _hospital in places(verdict(merkle_job, changed))}


@Placed
@given(st.data())
def test_any_order_of_leaves_but_the_right_one(merkle_job: Any, merkle_evidence: Evidence, data: st.DataObject) -> None:
    told = [each for each in merkle_evidence.leaves or () if each.update.round == 1]
    others = [each for each in merkle_evidence.leaves or () if each.update.round != 1]
    shuffled = data.draw(st.permutations(told).filter(lambda order: order != told))
    if data.draw(st.booleans()):
        shuffled = [each.model_copy(update={"index": index}) for index, each in enumerate(shuffled)]
    found = verdict(merkle_job, merkle_evidence.model_copy(update={"leaves": (*shuffled, *others)}))
    assert any("ascending order" in each.what and each.hospital for each in found.findings)
    assert {each.round for each in found.findings} == {1}


@Placed
@given(st.data())
def test_any_bit_of_the_leaves_member(
    merkle_bundle: Path, jobs_module: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with Bundle(merkle_bundle) as opened:
        content = opened.evidence.leaves_document()
    assert content is not None
    raw = content.encode()
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    path = tmp_path_factory.mktemp("bit") / "b.zip"
    jobs_module.rezip(merkle_bundle, path, {"leaves.json": flipped(raw, bit)})
    told = CliRunner().invoke(app, ["verify", "--offline", str(path)])
    assert told.exit_code in (1, 2)
    assert ("FOUND" if told.exit_code == 1 else "the bundle is damaged") in told.output


def test_a_leaf_left_out_or_of_no_round(merkle_job: Any, merkle_evidence: Evidence) -> None:
    told = merkle_evidence.leaves or ()
    fewer = verdict(merkle_job, merkle_evidence.model_copy(update={"leaves": told[1:]}))
    assert any("3 leaves are committed, 2 are given" in each.what for each in fewer.findings)
    stray = told[0].model_copy(update={"update": told[0].update.model_copy(update={"round": 7})})
    (finding,) = verdict(merkle_job, merkle_evidence.model_copy(update={"leaves": (*told, stray)})).findings
    assert (finding.round, finding.hospital) == (7, stray.update.hospital)
    assert "no commitment" in finding.what


def test_leaves_of_another_job_in_a_bundle(merkle_bundle: Path, jobs_module: Any, tmp_path: Path) -> None:
    with Bundle(merkle_bundle) as opened:
        document = opened.evidence.leaves_document()
    assert document is not None
    changed = document.model_copy(update={"job": "0" * 64}).encode()
    path = jobs_module.rezip(merkle_bundle, tmp_path / "b.zip", {"leaves.json": changed}, reseal=True)
    with Bundle(path) as opened:
        assert any("another job" in each.what for each in opened.findings)


def test_a_report_names_contributors_of_merkle_rounds(merkle_job: Any, merkle_evidence: Evidence) -> None:
    from datetime import UTC, datetime

    made = report.statement(verdict(merkle_job, merkle_evidence), merkle_evidence, datetime(2026, 11, 24, tzinfo=UTC))
    assert [(each.round, each.samples) for each in made.predicate.contributors] == [(1, 10), (1, 12), (2, 10), (2, 11)]


# ----------------------------------------------------------------------------------------------------- contract wallets


@pytest.mark.parametrize("proven", [False, True])
def test_a_wallets_leaf_is_asked_at_the_commitments_block(unfinished: Any, jobs_module: Any, proven: bool) -> None:
    """The contract asks no wallet at a commitment: offline, only its own proof says that this one signed."""
    ledger, owner = unfinished.ledger, Account.from_key(b"\x07" * 32)
    wallet = ledger.chain.deploy("TestWallet", owner.address)
    ledger.enrol(wallet.address)
    base, digest = unfinished.put(jobs_module.tensors(0)), unfinished.put(jobs_module.tensors(1))
    job = bytes.fromhex(unfinished.job)
    ledger.open(job, bytes.fromhex(base), merkle_only=True)
    fields = {"digest": bytes.fromhex(digest), "samples": 3, "hospital": wallet.address}
    made = unfinished.commit([ledger.update(owner, job, bytes.fromhex(base), **fields)])
    if proven:
        ledger.send("proveUpdate", *made.shown(0), sender=ledger.relay)
    published = unfinished.close(1, [jobs_module.Contribution(wallet.address, digest, 3)])
    ledger.send("publishModel", job, bytes.fromhex(published))
    claimed = tuple(leaf.model_copy(update={"wallet": True}) for leaf in unfinished.leaves)
    with closing(unfinished.node()) as node:
        read = chain.read(node, unfinished.job, None, None, quiet, everything=True)
        read = chain.with_wallets(node, read.with_leaves(unfinished.document()), quiet)
        shown, _fault = chain.with_blocks(node, read, quiet)
        stranger = read.model_copy(
            update={"leaves": tuple(each.model_copy(update={"signature": "0x" + "11" * 65}) for each in claimed)}
        )
        denied = chain.with_wallets(node, stranger, quiet)
    assert verdict(unfinished, shown, offline=False).ok
    assert [leaf.wallet for leaf in denied.leaves or ()] == [False]
    offline = verdict(unfinished, shown)
    assert offline.ok is proven, offline.findings
    if not proven:
        assert places(offline) == {(1, wallet.address)}
    assert not verdict(unfinished, read).ok, "without its blocks the bundle's word alone"


# ------------------------------------------------------------------------------------------------- from the services


class ServicesDouble:
    """What `services.read` asks of a client, told from evidence."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def events(self, _job: str) -> Any:
        return list(self._evidence.of_job())

    def recorded_events(self, to_block: int) -> Any:
        return [event for event in self._evidence.events if event.block <= to_block]

    def domain(self) -> Any:
        return self._evidence.domain

    def find_job(self, _prefix: str) -> Any:
        raise AssertionError("a whole id needs no aggregator")

    def ledger_job(self, job: str) -> LedgerJob:
        commitments = self._evidence.commitments()
        return LedgerJob(
            job=job, head="0" * 64, published=True, rounds=tuple(self._round(job, n) for n in sorted(commitments))
        )

    def _round(self, job: str, number: int) -> LedgerRound:
        event = self._evidence.commitments()[number]

        def update(leaf: Leaf) -> LedgerUpdate:
            return LedgerUpdate(
                update=leaf.update,
                signature=leaf.signature,
                metrics=leaf.metrics,
                reason=None,
                transaction=event.transaction,
                block=event.block,
                index=leaf.index,
            )

        own = [leaf for leaf in self._evidence.leaves or () if leaf.update.round == number]
        return LedgerRound(
            job=job,
            round=number,
            status=RoundStatus.CLOSED,
            base=own[0].update.base,
            deadline=0,
            quorum=1,
            submitted=len(own),
            rejected=0,
            global_digest=None,
            contributions=None,
            updates=tuple(update(each) for each in own),
            merkle=True,
            root=str(event.arguments["root"]),
        )


def test_the_services_tell_leaves_and_the_command_writes_them_down(
    merkle_job: Any, merkle_evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    double: Any = ServicesDouble(merkle_evidence)
    read = services.read(double, merkle_job.job)
    assert read.leaves == merkle_evidence.leaves
    assert verdict(merkle_job, read, offline=False).ok
    monkeypatch.setattr(verification, "client", lambda _config: double)
    made = run("leaves", merkle_job.job, "--out", tmp_path / "l.json")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "l.json").read_bytes() == merkle_job.document().encode()
    printed = run("leaves", merkle_job.job)
    assert json.loads(printed.stdout) == json.loads(merkle_job.document().encode())
    none: Any = ServicesDouble(merkle_evidence.model_copy(update={"leaves": None, "events": ()}))
    monkeypatch.setattr(verification, "client", lambda _config: none)
    assert run("leaves", merkle_job.job).exit_code == 2

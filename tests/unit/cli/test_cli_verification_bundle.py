"""Bundles: the same byte by byte, bounded when read, and no bit of them can be turned without being found."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import rlp
import safetensors.numpy
from concilia.app import app
from concilia.client import Client
from concilia.commands import evidence as asking
from concilia.verification import bundle as bundles
from concilia.verification import chain, services
from concilia.verification.blocks import Blocks, receipts_root
from concilia.verification.bundle import Bundle, BundleDamaged
from concilia.verification.decoding import ChainEvent
from concilia.verification.evidence import Evidence, SignedUpdate, examine
from concilia_aggregator.verification.sources import FolderSource
from concilia_kit.wire.adapter import TRUNK
from concilia_kit.wire.metadata import NOISE, STATE
from concilia_kit.wire.verification import Verdict
from eth_utils.address import to_checksum_address
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

Placed = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def flipped(data: bytes, bit: int) -> bytes:
    turned = bytearray(data)
    turned[bit // 8] ^= 1 << bit % 8
    return bytes(turned)


@pytest.fixture(scope="session")
def bundle(finished: Any, evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made from a node."""
    path = tmp_path_factory.mktemp("bundle") / "job.zip"
    assert bundles.write(evidence, FolderSource(finished.store), path, quiet) == 0
    return path


@pytest.fixture(scope="session")
def told_bundle(finished: Any, told: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made from the services."""
    path = tmp_path_factory.mktemp("told") / "job.zip"
    assert bundles.write(told, FolderSource(finished.store), path, quiet) == 0
    return path


def offline(path: Path) -> Verdict:
    with Bundle(path) as opened:
        found = examine(opened.evidence, opened.source, quiet, offline=True)
        findings = (*opened.findings, *found.findings)
    return found.model_copy(update={"findings": findings, "ok": not findings})


def command(path: Path, *arguments: str) -> Any:
    """`concilia verify --offline`: ends with an exit code, whatever it is given."""
    told = CliRunner().invoke(app, ["verify", "--offline", str(path), *arguments])
    assert isinstance(told.exception, SystemExit | None), told.exception
    return told


class Naming(FolderSource):
    """A store whose initial model names a trunk, what a strategy remembers and a key of noise; its updates name
    something too."""

    def __init__(self, store: Path, initial: str, models: frozenset[str]) -> None:
        super().__init__(store)
        self._names = {each: {} for each in models} | {initial: {TRUNK: "a" * 64, STATE: "b" * 64, NOISE: "d" * 64}}

    def fetch(self, digest: str, folder: Path) -> Path:
        path = super().fetch(digest, folder)
        made = folder / "named"
        said = self._names.get(digest, {TRUNK: "c" * 64})
        made.write_bytes(safetensors.numpy.save(safetensors.numpy.load_file(path), said))
        return made


def test_what_models_files_name_is_in_the_bundle_too(finished: Any, evidence: Evidence, tmp_path: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "job.zip"
    shutil.copytree(finished.store, store)
    for name in ("a" * 64, "b" * 64, "c" * 64, "d" * 64):
        (store / name[:2]).mkdir(exist_ok=True)
        safetensors.numpy.save_file({"w": np.zeros(1)}, store / name[:2] / name)
    initial = next(str(event.arguments["base"]) for event in evidence.of_job() if "base" in event.arguments)
    assert bundles.write(evidence, Naming(store, initial, evidence.models()), path, quiet) == 0
    with zipfile.ZipFile(path) as archive:
        held = {name.rpartition("/")[2] for name in archive.namelist() if name.startswith("artifacts/")}
    assert held == {*evidence.artifacts(), "a" * 64, "b" * 64, "d" * 64}
    with Bundle(path) as opened:
        assert "names other files" not in str(opened.findings)
        assert opened.fetch("a" * 64, tmp_path).exists()


def test_a_bundle_verifies_and_says_what_it_cannot_know(bundle: Path, finished: Any) -> None:
    told = command(bundle)
    assert told.exit_code == 0, told.output
    last = finished.ledger.chain.web3.eth.get_block(finished.ledger.chain.web3.eth.block_number - 1)
    assert f"compare the hash of block {last['number']}, 0x{bytes(last['hash']).hex()}" in told.output.replace("\n", "")
    assert "gaps" not in told.output


def test_a_bundle_of_the_services_says_whose_word_its_events_are(told_bundle: Path) -> None:
    found = offline(told_bundle)
    assert found.ok, found.findings
    assert any("chain service's word" in note for note in found.notes)
    assert any("nothing shows its events" in note for note in found.notes)


def test_a_bundle_is_the_same_byte_by_byte(bundle: Path, evidence: Evidence, finished: Any, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    bundles.write(evidence, FolderSource(finished.store), again, quiet)
    assert again.read_bytes() == bundle.read_bytes()
    with Bundle(bundle) as opened:
        assert opened.evidence == evidence


def test_without_artifacts_a_bundle_names_them(evidence: Evidence, finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "thin.zip"
    bundles.write(evidence, None, path, quiet)
    told = command(path)
    assert told.exit_code == 0
    assert "models not looked at" in told.output
    with Bundle(path) as opened:
        assert set(opened.manifest.artifacts) == {file.name for file in finished.store.glob("??/*")}
    full = command(path, "--artifacts", str(finished.store))
    assert "verified · 2 rounds folded again" in full.output


def test_a_missing_file_is_told_and_named(evidence: Evidence, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / "job.zip"
    assert bundles.write(evidence, FolderSource(tmp_path / "empty"), path, quiet) == len(evidence.artifacts())
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["job.zip"]


# ------------------------------------------------------------------------------------------------ no bit can be turned


@Placed
@given(st.data())
def test_any_bit_of_any_member(
    bundle: Path, jobs_module: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with zipfile.ZipFile(bundle) as archive:
        name = data.draw(st.sampled_from(archive.namelist()))
        content = archive.read(name)
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    path = jobs_module.rezip(bundle, tmp_path_factory.mktemp("bit") / "b.zip", {name: flipped(content, bit)})
    told = command(path)
    assert told.exit_code in (1, 2)
    assert ("FOUND" if told.exit_code == 1 else "the bundle is damaged") in told.output
    if name.startswith("artifacts/"):
        assert told.exit_code == 1
        assert name.rpartition("/")[2] in told.output


@Placed
@given(st.data())
def test_any_bit_of_the_file_itself(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The zip's own bytes: found, or a bit that no content hangs on (a time, a flag)."""
    content = bundle.read_bytes()
    where = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(len(content) - 1500, len(content) - 1)))
    path = tmp_path_factory.mktemp("raw") / "b.zip"
    path.write_bytes(flipped(content, 8 * where + data.draw(st.integers(0, 7))))
    told = command(path)
    assert told.exit_code in (0, 1, 2)
    if told.exit_code == 0:
        with zipfile.ZipFile(path) as turned, zipfile.ZipFile(bundle) as whole:
            assert {name: turned.read(name) for name in turned.namelist()} == {
                name: whole.read(name) for name in whole.namelist()
            }


def turned_event(data: st.DataObject, events: tuple[ChainEvent, ...]) -> tuple[int, ChainEvent, ChainEvent]:
    """One bit of one argument of an event, turned."""
    index = data.draw(st.integers(0, len(events) - 1))
    event = events[index]
    key = data.draw(st.sampled_from(sorted(event.arguments)))
    old = event.arguments[key]
    if isinstance(old, int):
        new: str | int = old ^ (1 << data.draw(st.integers(0, 31)))
    else:
        digits = old.removeprefix("0x")
        raw = flipped(bytes.fromhex(digits), data.draw(st.integers(0, 4 * len(digits) - 1))).hex()
        new = "0x" + raw if old.startswith("0x") else raw
        if old.startswith("0x"):
            new = str(to_checksum_address(new))
    return index, event, event.model_copy(update={"arguments": {**event.arguments, key: new}})


@Placed
@given(st.data())
def test_a_bit_of_an_event_in_a_bundle_sealed_anew(
    evidence: Evidence, finished: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whoever turns it also writes a manifest that fits: receipts and headers show what the chain has."""
    index, old, new = turned_event(data, evidence.events)
    events = (*evidence.events[:index], new, *evidence.events[index + 1 :])
    path = tmp_path_factory.mktemp("event") / "b.zip"
    bundles.write(evidence.model_copy(update={"events": events}), FolderSource(finished.store), path, quiet)
    found = offline(path)
    assert {(each.round, each.hospital) for each in found.findings} & {
        (old.round, old.hospital),
        (new.round, new.hospital),
    }


@Placed
@given(st.data())
def test_a_bit_of_a_signature_in_a_bundle_sealed_anew(told: Evidence, finished: Any, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(told.updates) - 1))
    item = told.updates[index]
    raw = bytes.fromhex(item.signature[2:])
    new = "0x" + flipped(raw, data.draw(st.integers(0, 8 * len(raw) - 1))).hex()
    found = with_update(finished, told, index, signature=new)
    assert [(each.round, each.hospital) for each in found.findings] == [(item.round, item.hospital)]


def test_a_second_signature_of_one_update_is_named(told: Evidence, finished: Any) -> None:
    twice = told.model_copy(update={"updates": (*told.updates, told.updates[0])})
    (finding,) = examine(twice, FolderSource(finished.store), quiet, offline=True).findings
    assert (finding.round, finding.hospital) == (told.updates[0].round, told.updates[0].hospital)


@Placed
@given(st.data())
def test_a_bit_of_metrics_in_a_bundle_sealed_anew(told: Evidence, finished: Any, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(told.updates) - 1))
    item = told.updates[index]
    assert item.metrics is not None
    turned = item.metrics.model_copy(update={"images": item.metrics.images ^ (1 << data.draw(st.integers(0, 31)))})
    found = with_update(finished, told, index, metrics=turned)
    assert [(each.round, each.hospital) for each in found.findings] == [(item.round, item.hospital)]


def with_update(finished: Any, evidence: Evidence, index: int, **changes: Any) -> Verdict:
    updates = list(evidence.updates)
    updates[index] = SignedUpdate(**{**dict(updates[index]), **changes})
    changed = evidence.model_copy(update={"updates": tuple(updates)})
    return examine(changed, FolderSource(finished.store), quiet, offline=True)


@Placed
@given(st.data())
def test_a_bit_of_calldata_in_a_bundle_sealed_anew(evidence: Evidence, finished: Any, data: st.DataObject) -> None:
    """Of what calldata says of an update: a word's padding and a call's offsets are read by nobody."""
    assert evidence.calldata is not None
    item = data.draw(st.sampled_from(evidence.updates))
    event = next(
        each
        for each in evidence.of_job()
        if each.name == "UpdateRecorded" and (each.round, each.hospital) == (item.round, item.hospital)
    )
    raw = bytes.fromhex(evidence.calldata[event.transaction][2:])
    part = data.draw(st.sampled_from([item.signature[2:], str(event.arguments["digest"])]))
    start = raw.index(bytes.fromhex(part))
    turned = flipped(raw, 8 * start + data.draw(st.integers(0, 4 * len(part) - 1)))
    calldata = evidence.calldata | {event.transaction: "0x" + turned.hex()}
    found = examine(
        evidence.model_copy(update={"calldata": calldata}), FolderSource(finished.store), quiet, offline=True
    )
    assert (item.round, item.hospital) in [(each.round, each.hospital) for each in found.findings]


@Placed
@given(st.data())
def test_a_bit_of_a_header_or_a_receipt(evidence: Evidence, finished: Any, data: st.DataObject) -> None:
    """The last header's own bits but for receipts root and number are the reader's to compare: its hash is named."""
    assert evidence.blocks is not None
    headers, receipts = list(evidence.blocks.headers), dict(evidence.blocks.receipts)
    if data.draw(st.booleans()):
        index = data.draw(st.integers(0, len(headers) - 2))
        bit = data.draw(st.integers(0, 4 * len(headers[index]) - 1))
        headers[index] = flipped(bytes.fromhex(headers[index]), bit).hex()
    else:
        number = data.draw(st.sampled_from(sorted(receipts)))
        (receipt,) = receipts[number]
        receipts[number] = (flipped(bytes.fromhex(receipt), data.draw(st.integers(0, 4 * len(receipt) - 1))).hex(),)
    blocks = Blocks(headers=tuple(headers), receipts=receipts)
    found = examine(evidence.model_copy(update={"blocks": blocks}), FolderSource(finished.store), quiet, offline=True)
    assert not found.ok


def test_the_order_of_contributions(evidence: Evidence, finished: Any) -> None:
    """Two updates of one batch change places: each event is another than its block holds."""
    events = list(evidence.events)
    first = next(index for index, event in enumerate(events) if event.name == "UpdateRecorded")
    one, two = events[first], events[first + 1]
    events[first] = two.model_copy(update={"log_index": one.log_index})
    events[first + 1] = one.model_copy(update={"log_index": two.log_index})
    changed = evidence.model_copy(update={"events": tuple(events)})
    found = examine(changed, FolderSource(finished.store), quiet, offline=True).findings
    assert {(each.round, each.hospital) for each in found} == {(1, one.hospital), (1, two.hospital)}


@pytest.mark.parametrize(
    ("header", "receipts"),
    [
        ([b""] * 15, [[]]),
        ([b"\xff" * 9] * 15, [[]]),
        ([[b""]] * 15, [[]]),
        ([b"\x01"] * 15, [b""]),
        ([b"\x01"] * 15, [[b"", b"", b"", b"logs"]]),
        ([b"\x01"] * 15, [[b"", b"", b"", [[b"", b""]]]]),
    ],
)
def test_blocks_of_any_shape_are_found_out(
    evidence: Evidence, header: list[Any], receipts: list[Any], finished: Any
) -> None:
    """Crafted to hash rightly: what is inside makes no sense."""
    raw = [rlp.encode(each) if each else b"" for each in receipts]
    if all(raw) and not isinstance(header[5], list):
        header = [*header[:5], receipts_root(raw), *header[6:]]
    blocks = Blocks(headers=(rlp.encode(header).hex(),), receipts={1: tuple(each.hex() for each in raw)})
    changed = evidence.model_copy(update={"blocks": blocks})
    assert not examine(changed, FolderSource(finished.store), quiet, offline=True).ok


@pytest.mark.parametrize("name", ["RoleRevoked", "UpdateRejected", "HospitalNumbered"])
def test_an_event_left_out_is_found_by_its_block(evidence: Evidence, finished: Any, name: str) -> None:
    kept = tuple(event for event in evidence.events if event.name != name)
    found = examine(evidence.model_copy(update={"events": kept}), FolderSource(finished.store), quiet, offline=True)
    assert any(f"holds a {name} that the events leave out" in each.what for each in found.findings)


def test_a_block_left_out_is_found_by_its_bloom(evidence: Evidence, finished: Any) -> None:
    """With its events and its receipts: the expulsion of a hospital never was."""
    revoked = next(event for event in evidence.events if event.name == "RoleRevoked")
    assert evidence.blocks is not None
    receipts = {number: each for number, each in evidence.blocks.receipts.items() if number != revoked.block}
    changed = evidence.model_copy(
        update={
            "events": tuple(event for event in evidence.events if event.block != revoked.block),
            "blocks": evidence.blocks.model_copy(update={"receipts": receipts}),
        }
    )
    (finding,) = examine(changed, FolderSource(finished.store), quiet, offline=True).findings
    assert f"block {revoked.block} may hold events" in finding.what


def test_a_bloom_that_says_perhaps_is_answered_by_receipts(
    unfinished: Any, jobs_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy chain, where other contracts' logs set the same bits: here every block's do."""
    monkeypatch.setattr("concilia.verification.blocks._may_hold", lambda *_: True)
    ether = {"from": unfinished.ledger.relay, "to": unfinished.ledger.admin, "gas": 21_000}
    unfinished.ledger.chain.web3.eth.send_transaction(ether)
    unfinished.run(rounds=1)
    with closing(unfinished.node()) as node:
        read = chain.read(node, unfinished.job, None, None, quiet, everything=True)
        shown, fault = chain.with_blocks(node, read, quiet)
    assert fault is None
    assert shown.blocks is not None
    assert len(shown.blocks.receipts) > len({event.block for event in shown.events})
    assert examine(shown, FolderSource(unfinished.store), quiet, offline=True).ok


def test_headers_with_gaps_say_so(evidence: Evidence, finished: Any) -> None:
    assert evidence.blocks is not None
    holding = [header for index, header in enumerate(evidence.blocks.headers) if index != 3]
    blocks = evidence.blocks.model_copy(update={"headers": tuple(holding)})
    found = examine(evidence.model_copy(update={"blocks": blocks}), FolderSource(finished.store), quiet, offline=True)
    assert any("gaps" in note for note in found.notes)


# ------------------------------------------------------------------------------------------------------ damaged bundles


def crafted(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x05\x06" + b"\xff" * 18),
        lambda path: crafted(path, ("events.json", b"[]")),
        lambda path: crafted(path, ("../../escape", b"")),
        lambda path: crafted(path, ("artifacts/ab/../../../escape", b"")),
        lambda path: crafted(path, ("artifacts/ab/cd" + "0" * 62, b"")),
        lambda path: crafted(path, ("events.json", b"[]"), compression=zipfile.ZIP_BZIP2),
        lambda path: crafted(
            path, ("events.json", b"[" * 100_000), ("updates.json", b"[]"), ("manifest.json", b"[" * 100_000)
        ),
    ],
)
def test_what_is_no_bundle_ends_with_2(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    make(path)
    told = command(path)
    assert told.exit_code == 2
    assert "the bundle is damaged" in told.output
    assert command(tmp_path / "absent.zip").exit_code == 2


def test_a_member_may_not_claim_more_than_the_bound(
    bundle: Path, jobs_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleDamaged, match="lacks updates"):
        Bundle(jobs_module.rezip(bundle, tmp_path / "b.zip", {"events.json": b"[]", "updates.json": None}))
    monkeypatch.setattr(bundles, "MOST_JSON", 1000)
    with pytest.raises(BundleDamaged, match=r"events\.json claims"):
        Bundle(bundle)


def test_a_bundle_of_another_job_is_not_what_was_asked_for(bundle: Path, finished: Any) -> None:
    assert command(bundle, finished.job[:8]).exit_code == 0  # typer takes the argument behind the options too
    told = command(bundle, "0" * 64)
    assert told.exit_code == 2
    assert "is of job" in told.output


# --------------------------------------------------------------------------------------------------- from the services


def chain_service(evidence: Evidence) -> httpx.MockTransport:
    """The chain service's answers about the job, three events a page."""
    events = [
        {**event.model_dump(mode="json"), "job": None, "round": None, "account": None, "at": None}
        for event in evidence.events
    ]
    own = [{**event.model_dump(mode="json"), "job": evidence.job, "round": event.round} for event in evidence.of_job()]
    recorded = {(each.round, each.hospital): each for each in evidence.of_job() if each.name == "UpdateRecorded"}
    bases = {each.round: each.arguments["base"] for each in evidence.of_job() if each.name == "RoundOpened"}

    def update(item: SignedUpdate) -> dict[str, Any]:
        event = recorded[item.round, item.hospital]
        told = {key: event.arguments[key] for key in ("hospital", "job", "round", "digest", "samples", "metrics")}
        return {
            "update": {**told, "base": bases[item.round]},
            "signature": item.signature,
            "metrics": item.metrics.model_dump(mode="json") if item.metrics else None,
            "reason": None,
            "transaction": event.transaction,
            "block": event.block,
        }

    rounds = [
        {
            "job": evidence.job,
            "round": number,
            "status": "closed",
            "base": base,
            "deadline": 0,
            "quorum": 1,
            "submitted": 1,
            "rejected": 0,
            "global_digest": None,
            "contributions": None,
            "updates": [update(item) for item in evidence.updates if item.round == number],
        }
        for number, base in bases.items()
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/contract":
            domain = evidence.domain
            info = {"chain_id": domain.chain_id, "address": domain.contract, "deployment_block": 2}
            return httpx.Response(200, json=info)
        if request.url.path == f"/v1/jobs/{evidence.job}/events":
            return httpx.Response(200, json=own)
        if request.url.path == "/v1/events":
            newest = [each for each in events[::-1] if each["block"] <= int(request.url.params["to_block"])]
            start = int(request.url.params.get("before", 0))
            more = str(start + 3) if start + 3 < len(newest) else None
            return httpx.Response(200, json={"events": newest[start : start + 3], "before": more})
        return httpx.Response(200, json={"job": evidence.job, "head": "0" * 64, "published": True, "rounds": rounds})

    return httpx.MockTransport(answer)


@pytest.fixture
def services_client(told: Evidence) -> Client:
    class Here:
        chain = httpx.Client(transport=chain_service(told), base_url="http://chain")

    return Client(Here())  # type: ignore[arg-type]


def test_the_services_tell_what_the_chain_holds(services_client: Client, told: Evidence) -> None:
    assert services.read(services_client, told.job) == told


def test_the_command_bundles_from_the_services(
    services_client: Client, told: Evidence, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "client", lambda _config: services_client)
    out = tmp_path / "job.zip"
    made = CliRunner().invoke(app, ["bundle", told.job, "--out", str(out), "--artifacts", str(finished.store)])
    assert made.exit_code == 0, made.output
    assert command(out).exit_code == 0
    with zipfile.ZipFile(out) as archive:
        assert json.loads(archive.read("manifest.json"))["origin"] == "services"


def test_the_command_bundles_from_a_node(
    bundle: Path, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "Node", lambda _url: finished.node())
    out = tmp_path / "job.zip"
    arguments = ["--rpc", "http://node", "--artifacts", str(finished.store), "--out", str(out)]
    made = CliRunner().invoke(app, ["bundle", finished.job, *arguments])
    assert made.exit_code == 0, made.output
    assert out.read_bytes() == bundle.read_bytes()

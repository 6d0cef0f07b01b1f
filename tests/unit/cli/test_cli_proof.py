"""Inclusion proofs at the command line: from the services, and from a file and a node alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia.app import app
from concilia.client import Client
from concilia.commands import evidence as asking
from concilia.commands import proof as command
from concilia.verification import proofs
from concilia.verification.evidence import Evidence
from concilia_aggregator.verification.roles import ROLE_EVENTS
from concilia_kit import merkle, signing
from concilia_kit.wire.chain import InclusionProof
from eth_account import Account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

Placed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(evidence: Evidence, number: int, index: int) -> InclusionProof:
    """What the chain service tells."""
    own = [leaf for leaf in evidence.leaves or () if leaf.update.round == number]
    hashes = [merkle.leaf(merkle.update_data(each.update, evidence.domain, each.signature)) for each in own]
    tree = merkle.Tree(hashes)
    event = evidence.commitments()[number]
    return InclusionProof(
        update=own[index].update,
        signature=own[index].signature,
        index=index,
        count=len(own),
        leaf=hashes[index].hex(),
        root=tree.root.hex(),
        path=tuple(each.hex() for each in tree.proof(index)),
        transaction=event.transaction,
        block=event.block,
    )


@pytest.fixture(scope="session")
def proof(merkle_evidence: Evidence) -> InclusionProof:
    """Of round 1's last leaf, whose way to the root is shorter than the others'."""
    return made(merkle_evidence, 1, 2)


@pytest.fixture
def kept(proof: InclusionProof, tmp_path: Path) -> Path:
    path = tmp_path / "proof.json"
    path.write_text(proof.model_dump_json())
    return path


@pytest.fixture
def asked() -> list[httpx.URL]:
    """What the chain service was asked."""
    return []


@pytest.fixture
def run(
    merkle_job: Any,
    merkle_evidence: Evidence,
    proof: InclusionProof,
    asked: list[httpx.URL],
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """The command, with a chain service and a node."""
    domain, job = merkle_evidence.domain, merkle_evidence.job
    own = [{**event.model_dump(mode="json"), "job": job, "round": event.round} for event in merkle_evidence.of_job()]

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        path = request.url.path
        if path == "/v1/contract":
            info = {"chain_id": domain.chain_id, "address": domain.contract, "deployment_block": 2}
            return httpx.Response(200, json=info)
        if path == f"/v1/jobs/{job}/events":
            return httpx.Response(200, json=own)
        if path == "/v1/events":
            params = request.url.params
            assert params.get_list("name") == sorted(ROLE_EVENTS)
            found = [
                {**event.model_dump(mode="json"), "job": None, "round": None, "account": params["account"], "at": None}
                for event in merkle_evidence.events[::-1]
                if event.name in ROLE_EVENTS and event.arguments["account"] == params["account"]
            ]
            return httpx.Response(200, json={"events": found, "before": None})
        if path.startswith(f"/v1/jobs/{job}/rounds/1/proofs/"):
            return httpx.Response(200, content=proof.model_dump_json())
        problem = {"status": 404, "code": "update_not_found", "detail": "there is no such update"}
        return httpx.Response(404, json=problem, headers={"Content-Type": "application/problem+json"})

    class Here:
        chain = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://chain")

    monkeypatch.setattr(asking, "Node", lambda _url: merkle_job.node())
    monkeypatch.setattr(command, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]

    def invoke(*arguments: object) -> Any:
        told = CliRunner().invoke(app, ["proof", *map(str, arguments)])
        assert isinstance(told.exception, SystemExit | None), told.exception
        return told

    return invoke


def test_a_proof_is_fetched_checked_and_kept(run: Any, proof: InclusionProof, tmp_path: Path) -> None:
    update = proof.update
    told = run(update.job, 1, update.hospital.lower(), "--out", tmp_path / "p.json")
    assert told.exit_code == 0, told.output
    assert "the proof holds" in told.output
    assert f"commits 3 updates of round 1 under root {proof.root}" in told.output
    assert f"hospital {update.hospital} signed it" in told.output
    assert InclusionProof.model_validate_json((tmp_path / "p.json").read_bytes()) == proof
    same = run("fetch", update.job, 1, update.hospital, "--json")
    assert json.loads(same.stdout)["holds"] is True
    chained = run(update.job, 1, update.hospital, "--rpc", "http://node")
    assert chained.exit_code == 0, chained.output


def test_a_kept_proof_needs_no_server(
    run: Any, kept: Path, merkle_evidence: Evidence, asked: list[httpx.URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run("check", kept, "--rpc", "http://node", "--contract", merkle_evidence.domain.contract)
    assert told.exit_code == 0, told.output
    assert "the proof holds" in told.output
    assert asked == []
    assert run("check", kept).exit_code == 0
    assert asked


def test_what_became_of_the_update_is_told(merkle_job: Any, merkle_evidence: Evidence, jobs_module: Any) -> None:
    rejected = jobs_module.HOSPITALS[1].address
    for leaf in merkle_evidence.leaves or ():
        found = made(merkle_evidence, leaf.update.round, leaf.index)
        judged = proofs.judge(found, merkle_evidence.domain, merkle_evidence.events)
        assert judged.holds, judged.faults
        left_out = leaf.update.hospital == rejected
        assert any("NON_FINITE" in fact for fact in judged.facts) is left_out
        assert any("counts in the round's model" in fact for fact in judged.facts) is not left_out
    one = made(merkle_evidence, 1, 0)
    unclosed = [each for each in merkle_evidence.events if each.name not in ("RoundClosed", "UpdateRejected")]
    assert any("open still" in each for each in proofs.judge(one, merkle_evidence.domain, unclosed).facts)


@Placed
@given(st.data())
def test_any_bit_of_a_proof(proof: InclusionProof, merkle_evidence: Evidence, data: st.DataObject) -> None:
    names = ["signature", "index", "count", "leaf", "root", "path", "block", "transaction"]
    member = data.draw(st.sampled_from([*names, "digest", "base", "metrics", "samples", "job", "round"]))
    if member in names:
        changed = {member: turned(getattr(proof, member), data)}
    else:
        update = proof.update.model_copy(update={member: turned(getattr(proof.update, member), data)})
        changed = {"update": update}
    judged = proofs.judge(proof.model_copy(update=changed), merkle_evidence.domain, merkle_evidence.events)
    assert not judged.holds
    assert judged.faults


def turned(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, tuple):
        index = data.draw(st.integers(0, len(value) - 1))
        return (*value[:index], turned(value[index], data), *value[index + 1 :])
    if isinstance(value, int):
        return value ^ (1 << data.draw(st.integers(0, 31)))
    raw = bytearray.fromhex(value.removeprefix("0x"))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    return ("0x" if value.startswith("0x") else "") + raw.hex()


def test_a_path_too_short_or_too_long(proof: InclusionProof, merkle_evidence: Evidence) -> None:
    for path in ((), (*proof.path, "0" * 64), proof.path[::-1] * 2):
        judged = proofs.judge(proof.model_copy(update={"path": path}), merkle_evidence.domain, merkle_evidence.events)
        assert any("does not lead" in fault for fault in judged.faults)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("UpdatesCommitted", "no commitment in round 1"),
        ("RoundOpened", "no round 1"),
        ("RoleGranted", "did not hold the hospital role"),
    ],
)
def test_events_that_the_ledger_does_not_have(
    proof: InclusionProof, merkle_evidence: Evidence, gone: str, words: str
) -> None:
    events = [event for event in merkle_evidence.events if event.name != gone]
    judged = proofs.judge(proof, merkle_evidence.domain, events)
    assert any(words in fault for fault in judged.faults)


def test_another_contracts_ledger(proof: InclusionProof, merkle_evidence: Evidence) -> None:
    other = merkle_evidence.domain.model_copy(update={"contract": "0x" + "11" * 20})
    assert not proofs.judge(proof, other, merkle_evidence.events).holds


def test_a_false_proof_ends_with_1_and_says_why(run: Any, proof: InclusionProof, kept: Path) -> None:
    stranger = Account.from_key(b"\x13" * 32)
    signature = "0x" + bytes(65).hex()
    kept.write_text(proof.model_copy(update={"signature": signature}).model_dump_json())
    told = run("check", kept, "--rpc", "http://node")
    assert told.exit_code == 1
    assert "does NOT hold" in told.output
    assert "its signature is nobody's" in told.output
    domain = signing.Domain(chain_id=1, contract=stranger.address)
    kept.write_text(
        proof.model_copy(update={"signature": signing.sign(proof.update, domain, stranger)}).model_dump_json()
    )
    assert run("check", kept, "--json").exit_code == 1


def test_a_wallet_is_asked_at_the_commitments_block(proof: InclusionProof, merkle_evidence: Evidence) -> None:
    """Of a signature that is no account's; what it is worth, the wallet says. Its leaf is another one, all the same."""
    by_wallet = proof.model_copy(update={"signature": "0x" + "11" * 65})
    asked: list[int] = []
    for accepts in (True, False):

        def ask(_proof: InclusionProof, block: int, accepts: bool = accepts) -> bool:
            asked.append(block)
            return accepts

        judged = proofs.judge(by_wallet, merkle_evidence.domain, merkle_evidence.events, ask)
        assert any("its signature is" in fault for fault in judged.faults) is not accepts
        assert any("the leaf of this update" in fault for fault in judged.faults)
    assert asked == [proof.block] * 2


def test_an_answer_about_another_update_is_none(run: Any, merkle_evidence: Evidence, jobs_module: Any) -> None:
    told = run(merkle_evidence.job, 1, jobs_module.HOSPITALS[0].address)
    assert told.exit_code == 2
    assert "another update" in told.output


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_proof(run: Any, kept: Path, content: bytes) -> None:
    kept.write_bytes(content)
    told = run("check", kept)
    assert told.exit_code == 2
    assert "is no proof" in told.output


def test_what_cannot_be_asked(
    run: Any, kept: Path, merkle_evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = merkle_evidence.leaves[0].update.hospital if merkle_evidence.leaves else ""
    assert run(merkle_evidence.job, 1, "0x12").exit_code == 2
    assert run(merkle_evidence.job, 2, hospital).exit_code == 1  # the service's own answer
    assert run("check", tmp_path / "none").exit_code == 2
    assert run("check", kept, "--contract", merkle_evidence.domain.contract).exit_code == 2
    assert run("check", kept, "--rpc", "http://node", "--contract", "0x" + "12" * 20).exit_code == 2
    assert run(merkle_evidence.job, 1, hospital, "--out", "/nowhere/p.json").exit_code == 2
    monkeypatch.setattr(command, "MOST_BYTES", 10)
    assert "too large" in run("check", kept).output

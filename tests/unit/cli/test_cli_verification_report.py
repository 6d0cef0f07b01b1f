"""Reports: in-toto statements, signed as DSSE envelopes by an Ethereum account."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from concilia.app import app
from concilia.connection import UsageError
from concilia.verification import bundle as bundles
from concilia.verification import report
from concilia.verification.evidence import Evidence, examine
from concilia_aggregator.verification.sources import FolderSource
from concilia_kit import keystore
from eth_account import Account
from eth_account.messages import encode_defunct
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

KEY = Account.from_key(b"\x09" * 32)
AT = datetime(2026, 11, 24, tzinfo=UTC)


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="session")
def statement(finished: Any, evidence: Evidence) -> report.Statement:
    return report.statement(examine(evidence, FolderSource(finished.store), quiet), evidence, AT)


def test_a_statement_is_about_the_published_model(statement: report.Statement, finished: Any, jobs_module: Any) -> None:
    document = statement.model_dump(mode="json", by_alias=True)
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["subject"] == [{"name": "model.safetensors", "digest": {"sha256": finished.published}}]
    told = document["predicate"]
    assert (told["ok"], told["rounds"], told["rejected"], told["findings"]) == (True, 2, 1, [])
    assert told["ledger"]["contract"] == finished.ledger.contract.address
    first, second, third = (each.address for each in jobs_module.HOSPITALS)
    assert second not in {each["hospital"] for each in told["contributors"]}
    assert [(each["round"], each["hospital"]) for each in told["contributors"]] == [
        (1, first),
        (1, third),
        (2, first),
        (2, third),
    ]


def test_the_encoding_is_that_of_dsse() -> None:
    """The form of the specification's example: lengths in bytes, single spaces."""
    assert report.pae("é".encode()) == b"DSSEv1 28 application/vnd.in-toto+json 2 " + "é".encode()


def test_a_signed_report_is_its_signers(statement: report.Statement, tmp_path: Path) -> None:
    report.save(report.envelope(statement, KEY), tmp_path / "r.json")
    found, signers = report.load(tmp_path / "r.json")
    assert (found, signers) == (statement, [KEY.address])
    # what any wallet's library would do
    envelope = json.loads((tmp_path / "r.json").read_bytes())
    payload = base64.b64decode(envelope["payload"])
    text = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    assert Account.recover_message(encode_defunct(text), signature=signature) == KEY.address


def test_a_bare_statement_is_nobodys(statement: report.Statement, tmp_path: Path) -> None:
    report.save(statement, tmp_path / "r.json")
    assert report.load(tmp_path / "r.json") == (statement, ())


@given(st.data())
def test_any_bit_of_what_was_signed(statement: report.Statement, data: st.DataObject) -> None:
    envelope = report.envelope(statement, KEY)
    payload = bytearray(base64.b64decode(envelope.payload))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="not of"):
        report._signer(bytes(payload), envelope.signatures[0])


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"payload": "?"}', b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_report(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(UsageError, match="no report"):
        report.load(tmp_path / "r.json")


def test_the_commands_write_and_check_a_report(finished: Any, evidence: Evidence, tmp_path: Path) -> None:
    run = CliRunner().invoke
    bundles.write(evidence, FolderSource(finished.store), tmp_path / "job.zip", quiet)
    account = keystore.create(tmp_path / "key.json", tmp_path / "key.password")
    arguments = ["verify", "--offline", str(tmp_path / "job.zip"), "--report", str(tmp_path / "r.json")]
    key = ["--keystore", str(tmp_path / "key.json"), "--password-file", str(tmp_path / "key.password")]
    assert run(app, [*arguments, *key]).exit_code == 0
    told = run(app, ["report", str(tmp_path / "r.json"), "--signer", account.address])
    assert told.exit_code == 0
    assert f"signed by {account.address}" in told.output
    assert run(app, ["report", str(tmp_path / "r.json"), "--signer", KEY.address]).exit_code == 2

    assert run(app, arguments).exit_code == 0
    assert "signed by nobody" in run(app, ["report", str(tmp_path / "r.json")]).output
    assert run(app, [*arguments, *key[:2]]).exit_code == 2
    assert run(app, [*arguments, "--keystore", "/nowhere", *key[2:]]).exit_code == 2


def test_a_report_of_a_verdict_with_findings(evidence: Evidence, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bundles.write(evidence, FolderSource(tmp_path / "empty"), tmp_path / "job.zip", quiet)
    arguments = ["--artifacts", str(tmp_path / "empty"), "--report", str(tmp_path / "r.json")]
    told = CliRunner().invoke(app, ["verify", "--offline", str(tmp_path / "job.zip"), *arguments])
    assert told.exit_code == 1
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "r.json")])
    assert shown.exit_code == 1
    assert "NOT verified" in shown.output

"""A verdict as a document that others can rely on: an in-toto Statement, signed as a DSSE envelope.

The key is an Ethereum account's, like every key here: an EIP-191 signature over DSSE's pre-authentication encoding, so
that `personal_sign` of any wallet makes and any Ethereum library checks it (docs/decisions/0013).
Source: in-toto attestation framework, Statement v1; DSSE 1.0.2; EIP-191, version 0x45.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from concilia_kit.signing import Address, Domain
from concilia_kit.wire.chain import EventName
from concilia_kit.wire.verification import Finding, Verdict
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from concilia.connection import UsageError
from concilia.verification import saving
from concilia.verification.evidence import Evidence

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MOST_BYTES = 64 * 2**20


class _Open(BaseModel):
    """in-toto and DSSE: members that are not known are no error."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Subject(_Open):
    """What a statement is about."""

    name: str
    digest: dict[str, str]


class Contributor(_Open):
    """An update that went into a closed round."""

    round: int
    hospital: str
    update: str
    samples: int


class Verification(_Open):
    """The predicate: what was checked and what came of it."""

    job: str
    ledger: Domain
    verified_at: datetime = Field(alias="verifiedAt")
    ok: bool
    rounds: int
    updates: int
    signatures: int
    rejected: int
    bytes_read: int = Field(alias="bytesRead")
    contributors: tuple[Contributor, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]


class Statement(_Open):
    """An in-toto Statement v1 about a job's model."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type", default="https://in-toto.io/Statement/v1")
    subject: tuple[Subject, ...] = Field(min_length=1)
    predicate_type: Literal["urn:concilia:job-verification:1"] = Field(
        alias="predicateType", default="urn:concilia:job-verification:1"
    )
    predicate: Verification


class EnvelopeSignature(_Open):
    """One signature of an envelope; `keyid` is the signer's address."""

    keyid: Address
    sig: str


class Envelope(_Open):
    """DSSE's envelope."""

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = Field(
        alias="payloadType", default="application/vnd.in-toto+json"
    )
    signatures: tuple[EnvelopeSignature, ...] = Field(min_length=1)


def statement(verdict: Verdict, evidence: Evidence, at: datetime) -> Statement:
    """What a verdict says, as a statement about the published model; about the job itself where none is published."""
    subject = (
        Subject(name="model.safetensors", digest={"sha256": verdict.published})
        if verdict.published
        else Subject(name="job", digest={"concilia-job": verdict.job})
    )
    told = verdict.model_dump(include={"job", "ok", "rounds", "updates", "signatures", "rejected", "bytes_read"})
    return Statement(
        subject=(subject,),
        predicate=Verification(
            ledger=evidence.domain,
            verified_at=at,
            contributors=tuple(_contributors(evidence)),
            findings=verdict.findings,
            notes=verdict.notes,
            versions={name: version(name) for name in ("concilia-cli", "concilia-aggregator", "concilia-kit", "numpy")},
            **told,
        ),
    )


def pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding of an in-toto payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def envelope(made: Statement, account: LocalAccount) -> Envelope:
    """A statement signed by an account."""
    payload = _json(made)
    signature = bytes(account.sign_message(encode_defunct(pae(payload))).signature)
    return Envelope(
        payload=base64.b64encode(payload).decode(),
        signatures=(EnvelopeSignature(keyid=account.address, sig=base64.b64encode(signature).decode()),),
    )


def save(document: Statement | Envelope, path: Path) -> None:
    """Write a report, all at once. Raises `OSError`."""
    saving.save(_json(document) + b"\n", path)


def load(path: Path) -> tuple[Statement, Sequence[str]]:
    """A report, and the addresses whose signatures it truly carries: none for a bare statement.

    Raises `UsageError` where the file is no report, or carries a signature that is not its key's.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is too large to be a report")
        data = path.read_bytes()
        document: Any = from_json(data)  # unlike json's, it does not run out of stack, however deep the nesting
        if not isinstance(document, dict) or "payload" not in document:
            return Statement.model_validate_json(data), ()
        signed = Envelope.model_validate_json(data)
        payload = base64.b64decode(signed.payload, validate=True)
        signers = [_signer(payload, each) for each in signed.signatures]
        return Statement.model_validate_json(payload), signers
    except (OSError, ValidationError, ValueError, binascii.Error) as error:
        raise UsageError(f"{path} is no report: {str(error).splitlines()[0]}") from error


def _signer(payload: bytes, signature: EnvelopeSignature) -> str:
    raw = base64.b64decode(signature.sig, validate=True)
    try:
        found = str(Account.recover_message(encode_defunct(pae(payload)), signature=raw))
    except Exception as error:  # eth-keys raises its own family for malformed signatures
        raise ValueError(f"the signature of {signature.keyid} is malformed") from error
    if found != signature.keyid:
        raise ValueError(f"the signature is not of {signature.keyid}")
    return found


def _contributors(evidence: Evidence) -> list[Contributor]:
    closed = {event.round for event in evidence.of_job() if event.name == EventName.ROUND_CLOSED}
    rejected = {(event.round, event.hospital) for event in evidence.of_job() if event.name == EventName.UPDATE_REJECTED}
    return [
        Contributor(round=each.round, hospital=each.hospital, update=each.digest, samples=each.samples)
        for each in sorted(evidence.named(), key=lambda each: each.round)
        if each.round in closed and (each.round, each.hospital) not in rejected
    ]


def _json(document: BaseModel) -> bytes:
    return json.dumps(
        document.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), ensure_ascii=True
    ).encode()

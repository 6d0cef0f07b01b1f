"""Signed updates of Merkle rounds, of which the chain has the root only: a document that says what is under it.

It needs no trust. A leaf that was altered, left out or added gives another root than the ledger's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import httpx
from concilia_kit.digests import JobId
from concilia_kit.http import TIMEOUT
from concilia_kit.signing import Domain, Signature, Update
from concilia_kit.wire.base import Wire
from concilia_kit.wire.training import UpdateMetrics
from pydantic import Field, ValidationError

from concilia.connection import UsageError
from concilia.verification import saving

MOST_BYTES = 256 * 2**20


class Leaf(Wire):
    """An update under a commitment, at its index. `wallet`: a contract wallet said that it signed."""

    index: int = Field(ge=0, lt=2**32)
    update: Update
    signature: Signature
    metrics: UpdateMetrics | None = None
    wallet: bool = False


class Leaves(Wire):
    """All leaves of a job's Merkle rounds: round by round, each round's by ascending index."""

    format: Literal["concilia-leaves/1"] = "concilia-leaves/1"
    domain: Domain
    job: JobId
    leaves: tuple[Leaf, ...]

    def encode(self) -> bytes:
        """The document, the same byte by byte for the same leaves."""
        value = self.model_dump(mode="json")
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def read(where: str) -> Leaves:
    """The document in a file or at an address. Raises `UsageError` where there is none."""
    if not where.startswith(("http://", "https://")):
        path = Path(where)
        try:
            if path.stat().st_size > MOST_BYTES:
                raise UsageError(f"{where} is too large to be leaves")
            return _parsed(path.read_bytes(), where)
        except OSError as error:
            raise UsageError(f"{where} cannot be read: {error}") from error
    host = httpx.URL(where).host  # not the whole address: it may hold a key
    data = bytearray()
    try:
        with httpx.stream("GET", where, timeout=TIMEOUT, follow_redirects=True) as answer:
            if answer.status_code != httpx.codes.OK:
                raise UsageError(f"{host} has no leaves there: it answers HTTP {answer.status_code}")
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise UsageError(f"what {host} answers is too large to be leaves")
    except httpx.TransportError as error:
        raise UsageError(f"{host} does not answer ({type(error).__name__})") from error
    return _parsed(bytes(data), host)


def save(document: Wire | bytes, path: Path) -> None:
    """Write a document, all at once. Raises `UsageError` where that cannot be."""
    data = document if isinstance(document, bytes) else document.model_dump_json(indent=2).encode() + b"\n"
    try:
        saving.save(data, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


def _parsed(data: bytes, name: str) -> Leaves:
    try:
        return Leaves.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UsageError(f"{name} holds no leaves: {where} {fault['msg']}".replace("  ", " ")) from error

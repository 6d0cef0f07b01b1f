"""SHA-256 digests of the bytes that matter: files, canonical JSON, and the ordered list of what went into a model.

A digest is 64 lower-case hexadecimal characters everywhere off chain, and the same 32 bytes on chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import rfc8785
from pydantic import StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", strict=True)]
"""SHA-256 as 64 lower-case hexadecimal characters."""

JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", strict=True)]
"""The contract's `bytes32 job` as 64 lower-case hexadecimal characters: the digest of the job's manifest
(`wire.jobs.JobManifest`), of jobs from before there were manifests 32 random bytes."""


class Contribution(NamedTuple):
    """What one hospital gave to a round: EIP-55 address, update digest, samples behind it."""

    hospital: str
    digest: str
    samples: int


def of_file(path: Path) -> str:
    """SHA-256 of a file's exact bytes, read once. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form (RFC 8785). Raises `rfc8785.CanonicalizationError`."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()


def of_contributions(contributions: Iterable[Contribution]) -> str:
    """The contribution list's digest as `RoundClosed` carries it.

    SHA-256 over the contributions in ascending order of hospital address, each as
    `hospital (20 bytes) || digest (32 bytes) || samples (8 bytes, big-endian)`. The order of the argument does not
    matter. Raises `ValueError` for a malformed address or digest, `OverflowError` for samples beyond 64 bits.
    """
    hasher = hashlib.sha256()
    for item in in_order(contributions):
        hasher.update(bytes.fromhex(item.hospital.removeprefix("0x")))
        hasher.update(bytes.fromhex(item.digest))
        hasher.update(item.samples.to_bytes(8, "big"))
    return hasher.hexdigest()


def in_order(contributions: Iterable[Contribution]) -> list[Contribution]:
    """Contributions in the one order in which they are folded and hashed: by address, as numbers."""
    return sorted(contributions, key=lambda item: int(item.hospital, 16))

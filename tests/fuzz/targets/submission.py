"""A hospital's signed update as JSON, and what the gateway derives from it before the chain is asked anything."""

from __future__ import annotations

import contextlib
import random

from concilia_kit import digests, merkle, signing
from concilia_kit.wire.chain import UpdateSubmission
from pydantic import ValidationError

from tests.fuzz import structure

DECLARED = (ValidationError,)
GROWTH = 64 * 2**20
_DOMAIN = signing.Domain(chain_id=1337, contract="0x" + "11" * 20)


def run(data: bytes) -> None:
    """Read, write and read again; digest, leaf and signer of what was read."""
    submission = UpdateSubmission.model_validate_json(data)
    assert UpdateSubmission.model_validate_json(submission.model_dump_json()) == submission
    assert len(digests.of_json(submission.metrics.model_dump(mode="json"))) == 64
    assert len(signing.signed_hash(submission.update, _DOMAIN)) == 32
    merkle.leaf(merkle.update_data(submission.update, _DOMAIN, submission.signature))
    signing.is_canonical(submission.signature)
    with contextlib.suppress(ValueError):  # what it declares
        signing.signer(submission.update, _DOMAIN, submission.signature)


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change the JSON."""
    return structure.changed_json(data, source)

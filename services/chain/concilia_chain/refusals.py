"""What a revert says: selector and arguments turned into the contract error's name, a status and a sentence.

Pure. Source: Solidity's ABI specification, "Errors"; ERC-6093 and OpenZeppelin for the names that are not ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

# Raised by libraries on the contract's behalf, and absent from its ABI.
_FOREIGN = {
    "Error": ("string",),
    "Panic": ("uint256",),
    "ECDSAInvalidSignature": (),
    "ECDSAInvalidSignatureLength": ("uint256",),
    "ECDSAInvalidSignatureS": ("bytes32",),
}

_DEFAULT = (409, "the contract refused")
_MEANING: Mapping[str, tuple[int, str]] = {
    "AccessControlUnauthorizedAccount": (403, "the sender does not hold the role that this needs"),
    "AlreadyCommitted": (409, "the round's updates were committed before"),
    "AlreadyRejected": (409, "the update was rejected before"),
    "AlreadySubmitted": (409, "the hospital has already submitted in this round"),
    "BaseMismatch": (422, "the base model named is not the ledger's"),
    "ContributionCountMismatch": (409, "another number of updates was folded than the ledger counts as accepted"),
    "DeadlinePassed": (409, "the deadline has passed"),
    "ECDSAInvalidSignature": (422, "the signature is malformed"),
    "ECDSAInvalidSignatureLength": (422, "the signature is malformed"),
    "ECDSAInvalidSignatureS": (422, "the signature is malformed"),
    "EmptyValue": (422, "a digest, job or list that must not be empty is"),
    "EnforcedPause": (409, "the ledger is paused by its administrator"),
    "ExpectedPause": (409, "the ledger is not paused"),
    "IndexOutOfRange": (422, "the commitment has not that many leaves"),
    "InvalidAccountNonce": (409, "the signed nonce is not the administrator's next one"),
    "InvalidSignature": (422, "the signature does not belong to the address that it claims"),
    "JobPublished": (409, "the job's model is published; it takes no further round"),
    "MoreUpdatesThanHospitals": (422, "a commitment counts more updates than there are hospitals"),
    "NoSamples": (422, "an update must have samples behind it"),
    "NotCommitted": (409, "the round's updates were not committed"),
    "NotHead": (409, "the digest to publish is not the job's head, or the job has no closed round"),
    "NotHospital": (403, "the signer does not hold the hospital role"),
    "NotInCommitment": (422, "the proof does not lead to the committed root"),
    "NothingToDispute": (409, "the committed update is right, or only its wallet could tell"),
    "PreviousRoundOpen": (409, "the job's last round is still open"),
    "QuorumNotReached": (409, "fewer updates were accepted than the round's quorum"),
    "ReasonMissing": (422, "a rejection must say why"),
    "RoundNotOpen": (409, "the round is not open"),
    "RoundOutOfOrder": (409, "the round is not the one that follows the job's last"),
    "RoundTakesCommitment": (409, "the round takes its updates as one commitment"),
    "UnknownRole": (422, "the ledger does not know this role"),
    "UpdateNotFound": (404, "there is no such update"),
    "UpdatesRecorded": (409, "the round has recorded updates already and takes no commitment"),
    "Panic": (500, "the contract failed an inner check"),
}


class Refusal(NamedTuple):
    """A revert's error by name, its arguments as JSON values (bytes as hexadecimal without prefix)."""

    name: str
    arguments: dict[str, str | int | bool]

    @property
    def code(self) -> str:
        """The name in snake_case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.name).lower()

    @property
    def status(self) -> int:
        """The HTTP status that fits."""
        return _MEANING.get(self.name, _DEFAULT)[0]

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        return _MEANING.get(self.name, _DEFAULT)[1]


class RefusalReader:
    """Reads reverts of one contract by its ABI."""

    def __init__(self, abi: Iterable[Mapping[str, Any]]) -> None:
        self._known: dict[bytes, tuple[str, tuple[str, ...], tuple[str, ...]]] = {}
        for name, types in _FOREIGN.items():
            self._learn(name, types, tuple(f"argument{index}" for index in range(len(types))))
        for entry in abi:
            if entry["type"] == "error":
                inputs = entry["inputs"]
                self._learn(entry["name"], tuple(i["type"] for i in inputs), tuple(i["name"] for i in inputs))

    def _learn(self, name: str, types: tuple[str, ...], names: tuple[str, ...]) -> None:
        self._known[keccak(text=f"{name}({','.join(types)})")[:4]] = (name, types, names)

    def read_error(self, member: object) -> Refusal:
        """The refusal in a JSON-RPC error's `data`: hexadecimal, or an object with `result` (Ganache's estimates)."""
        text = member.get("result") if isinstance(member, dict) else member
        try:
            return self.read(bytes.fromhex(str(text).removeprefix("0x")))
        except ValueError:
            return self.read(b"")

    def read(self, data: bytes) -> Refusal:
        """The refusal that revert data carries; `Revert` where it says nothing that is known."""
        name, types, names = self._known.get(data[:4], ("Revert", (), ()))
        try:
            values = decode(types, data[4:])
        except DecodingError:
            name, names, types, values = "Revert", (), (), ()
        if name == "Revert":
            return Refusal(name, {"data": data.hex()})
        return Refusal(name, {key: plain(kind, value) for key, kind, value in zip(names, types, values, strict=True)})


def plain(kind: str, value: Any) -> str | int | bool:
    """An ABI value of an elementary type as JSON: bytes as hexadecimal without prefix, addresses with checksum."""
    if kind == "address":
        return str(to_checksum_address(value))
    if isinstance(value, bytes):
        return value.hex()
    assert isinstance(value, (str, int))
    return value

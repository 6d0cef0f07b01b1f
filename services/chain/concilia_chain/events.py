"""Logs and calldata read as what the ledger said: pure decoding, bytes in, values out.

Source: Solidity's ABI specification, "Events" and "Function selector".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from concilia_kit.wire.chain import EventName
from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import abi_to_signature, get_abi_input_types
from eth_utils.crypto import keccak

from concilia_chain.refusals import plain

JOB_EVENTS = frozenset(EventName)


class RawLog(NamedTuple):
    """One log as a node returns it."""

    topics: Sequence[bytes]
    data: bytes
    block: int
    block_hash: str
    log_index: int
    transaction: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded event; bytes32 as 64 hexadecimal characters, addresses with checksum, hashes with 0x.

    Calldata adds the `signature` to an `UpdateRecorded`, and the `signer` to a `RoleGranted` or `RoleRevoked` that came
    by a signed role change; None elsewhere and where calldata does not say. `timestamp` is the block's, Unix seconds;
    None where the event was stored before times were.
    """

    name: str
    arguments: dict[str, str | int]
    block: int
    block_hash: str
    log_index: int
    transaction: str
    signature: str | None = None
    timestamp: int | None = None
    signer: str | None = None

    @property
    def job(self) -> str | None:
        """The job that the event is about, if any."""
        return str(self.arguments["job"]) if self.name in JOB_EVENTS else None

    @property
    def round(self) -> int | None:
        """The round that the event is about, if any."""
        return int(self.arguments["round"]) if self.name in JOB_EVENTS else None

    @property
    def account(self) -> str | None:
        """The hospital or the role's account that the event is about, if any."""
        value = self.arguments.get("hospital", self.arguments.get("account"))
        return None if value is None else str(value)


class Submitted(NamedTuple):
    """A hospital's part of a relayed batch as calldata carries it."""

    hospital: str
    digest: str
    signature: str


class SignedChange(NamedTuple):
    """A signed role change as calldata carries it; `role` as 64 hexadecimal characters, `signature` with 0x."""

    role: str
    account: str
    granted: bool
    nonce: int
    deadline: int
    admin: str
    signature: str


class EventReader:
    """Reads one contract's logs, submissions and role changes by its ABI."""

    def __init__(self, abi: Iterable[Mapping[str, Any]]) -> None:
        entries = [dict(entry) for entry in abi]
        self._events = {_signature_hash(entry): entry for entry in entries if entry["type"] == "event"}
        functions = {entry["name"]: entry for entry in entries if entry["type"] == "function"}
        self._submit = _Function(functions["submitUpdates"])
        self._change = _Function(functions["changeRole"])

    def event(self, log: RawLog) -> Event | None:
        """The event of a log; None for one that the ABI does not know."""
        entry = self._events.get(log.topics[0]) if log.topics else None
        if entry is None:
            return None
        indexed = [each for each in entry["inputs"] if each["indexed"]]
        others = [each for each in entry["inputs"] if not each["indexed"]]
        values = {
            each["name"]: plain(each["type"], decode([each["type"]], topic)[0])
            for each, topic in zip(indexed, log.topics[1:], strict=True)
        }
        rest = decode([each["type"] for each in others], log.data)
        values |= {each["name"]: plain(each["type"], value) for each, value in zip(others, rest, strict=True)}
        return Event(
            name=entry["name"],
            arguments={each["name"]: values[each["name"]] for each in entry["inputs"]},
            block=log.block,
            block_hash=log.block_hash,
            log_index=log.log_index,
            transaction=log.transaction,
            timestamp=log.timestamp,
        )

    def submissions(self, calldata: bytes) -> list[Submitted]:
        """The signed updates in a transaction's calldata, also where a wallet or a multicall wraps the call."""
        return [
            Submitted(str(plain("address", hospital)), digest.hex(), "0x" + signature.hex())
            for _job, _round, _base, updates in self._submit.calls(calldata)
            for hospital, digest, _samples, _metrics, signature in updates
        ]

    def is_role_change(self, calldata: bytes) -> bool:
        """Whether a transaction's calldata is itself a call of `changeRole`, which the contract then verified."""
        return calldata.startswith(self._change.selector)

    def role_changes(self, calldata: bytes) -> list[SignedChange]:
        """The signed role changes in a transaction's calldata, in order, also where something wraps the calls.

        Whoever wraps calls may put others beside them that were never made.
        """
        return [
            SignedChange(
                role.hex(),
                str(plain("address", account)),
                granted,
                nonce,
                deadline,
                str(plain("address", admin)),
                "0x" + signature.hex(),
            )
            for (role, account, granted, nonce, deadline), admin, signature in self._change.calls(calldata)
        ]


class _Function:
    """One function of the contract: its selector, and its calls wherever they stand in some calldata."""

    def __init__(self, entry: Any) -> None:
        self.selector = _signature_hash(entry)[:4]
        self._types = get_abi_input_types(entry)

    def calls(self, calldata: bytes) -> Iterator[tuple[Any, ...]]:
        """The arguments of each call that can be decoded, in order."""
        start = calldata.find(self.selector)
        while start >= 0:
            with contextlib.suppress(DecodingError, OverflowError):
                yield decode(self._types, calldata[start + 4 :], strict=False)
            start = calldata.find(self.selector, start + 1)


def _signature_hash(entry: Any) -> bytes:
    return keccak(text=abi_to_signature(entry))

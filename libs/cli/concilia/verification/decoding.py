"""The ledger's logs and calldata, read by the contract's ABI: pure, bytes in, values out.

Written apart from the gateway's own reading of them, so that a verification does not lean on what it doubts.
Source: Solidity's ABI specification, "Events" and "Function selector".
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from concilia_kit.signing import Update
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import EventName
from concilia_kit.wire.verification import Finding
from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import abi_to_signature, get_abi_input_types
from eth_utils.address import is_checksum_address, to_checksum_address
from eth_utils.crypto import keccak
from pydantic import Field

ADDRESS = r"^0x[0-9a-fA-F]{40}$"
_BUILD = Path(__file__).parents[1] / "ConciliaLedger.json"

_ADDRESS = re.compile(ADDRESS)

Arguments = dict[str, str | int]
"""An event's arguments by name: bytes32 as 64 hexadecimal characters, addresses with checksum, numbers as numbers."""


class ChainEvent(Wire):
    """One event of the contract; `arguments` as the contract names them, bytes32 as 64 hexadecimal characters."""

    name: str = Field(max_length=64)
    block: int = Field(ge=0, lt=2**63)
    log_index: int = Field(ge=0, lt=2**31)
    transaction: str = Field(pattern=r"^0x[0-9a-f]{64}$")
    arguments: dict[str, str | int]

    @property
    def round(self) -> int:
        """The round that it concerns; 0 for none."""
        value = self.arguments.get("round")
        return value if isinstance(value, int) else 0

    @property
    def hospital(self) -> str | None:
        """The hospital that it concerns, if any, and if it could be one: it is printed."""
        value = self.arguments.get("hospital")
        return value if isinstance(value, str) and _ADDRESS.fullmatch(value) else None

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in the chain."""
        return self.block, self.log_index

    def finding(self, what: str) -> Finding:
        """Something about this event that does not agree."""
        digest = self.arguments.get("digest")
        named = digest if isinstance(digest, str) and _fits("bytes32", digest) else None
        return Finding(round=self.round, hospital=self.hospital, digest=named, what=what)


def bases(events: Iterable[ChainEvent]) -> dict[int, str]:
    """The base of each round that one job's events open."""
    return {event.round: str(event.arguments["base"]) for event in events if event.name == EventName.ROUND_OPENED}


def update_of(recorded: ChainEvent, bases: Mapping[int, str]) -> Update:
    """What a hospital signed, from the event that recorded it. Raises `pydantic.ValidationError`."""
    told = recorded.arguments
    return Update(
        hospital=str(told["hospital"]),
        job=str(told["job"]),
        round=recorded.round,
        base=bases.get(recorded.round, "0" * 64),
        digest=str(told["digest"]),
        samples=int(told["samples"]),
        metrics=str(told["metrics"]),
    )


class Submission(NamedTuple):
    """One hospital's part of a batch as calldata carries it; digests as 64 hexadecimal characters."""

    job: str
    round: int
    base: str
    hospital: str
    digest: str
    samples: int
    metrics: str
    signature: str


@functools.cache
def _entries(kind: str) -> tuple[Any, ...]:
    # a link to the contract's build, followed when a wheel is made
    return tuple(entry for entry in json.loads(_BUILD.read_text())["abi"] if entry["type"] == kind)


@functools.cache
def events() -> Mapping[bytes, dict[str, Any]]:
    """The contract's events by their first topic."""
    return {keccak(text=abi_to_signature(entry)): entry for entry in _entries("event")}


@functools.cache
def _submit() -> tuple[bytes, list[str]]:
    (entry,) = (entry for entry in _entries("function") if entry["name"] == "submitUpdates")
    return keccak(text=abi_to_signature(entry))[:4], get_abi_input_types(entry)


def topic(name: str) -> bytes:
    """An event's first topic. Raises `KeyError` for a name that the contract does not have."""
    for found, entry in events().items():
        if entry["name"] == name:
            return found
    raise KeyError(name)


def event(topics: Sequence[bytes], data: bytes) -> tuple[str, Arguments] | None:
    """A log's event and its arguments; None for one that the contract does not have.

    Raises `ValueError` where the log has not the event's shape.
    """
    entry = events().get(topics[0]) if topics else None
    if entry is None:
        return None
    indexed = [each for each in entry["inputs"] if each["indexed"]]
    others = [each for each in entry["inputs"] if not each["indexed"]]
    try:
        values = {
            each["name"]: _plain(each["type"], decode([each["type"]], word)[0])
            for each, word in zip(indexed, topics[1:], strict=True)
        }
        rest = decode([each["type"] for each in others], data)
    except (DecodingError, OverflowError) as error:
        raise ValueError(f"a log is no {entry['name']}") from error
    values |= {each["name"]: _plain(each["type"], value) for each, value in zip(others, rest, strict=True)}
    return entry["name"], {each["name"]: values[each["name"]] for each in entry["inputs"]}


def fault(name: str, arguments: Mapping[str, str | int]) -> str | None:
    """What keeps arguments from being those of such an event; None where nothing does."""
    inputs = next((entry["inputs"] for entry in events().values() if entry["name"] == name), None)
    if inputs is None:
        return f"the contract has no event {name!r}"
    if set(arguments) != {each["name"] for each in inputs}:
        return "its arguments have other names than the contract's"
    for each in inputs:
        if not _fits(each["type"], arguments[each["name"]]):
            return f"its {each['name']} is no {each['type']}"
    return None


def submissions(calldata: bytes) -> Iterator[Submission]:
    """The signed updates in a transaction's calldata, also where a wallet or a multicall wraps the call.

    What is found in wrapped calldata need never have been called: a submission counts where an event and its signature
    agree with it.
    """
    selector, types = _submit()
    start = calldata.find(selector)
    while start >= 0:
        with contextlib.suppress(DecodingError, OverflowError):
            job, number, base, updates = decode(types, calldata[start + 4 :], strict=False)
            for hospital, digest, samples, metrics, signature in updates:
                yield Submission(
                    job.hex(),
                    number,
                    base.hex(),
                    str(to_checksum_address(hospital)),
                    digest.hex(),
                    samples,
                    metrics.hex(),
                    "0x" + signature.hex(),
                )
        start = calldata.find(selector, start + 1)


def _plain(kind: str, value: Any) -> str | int:
    if kind == "address":
        return str(to_checksum_address(value))
    return value.hex() if isinstance(value, bytes) else int(value)


def _fits(kind: str, value: str | int) -> bool:
    if kind.startswith("uint"):
        return isinstance(value, int) and 0 <= value < 2 ** int(kind.removeprefix("uint"))
    if not isinstance(value, str):
        return False
    if kind == "address":
        return is_checksum_address(value)
    return len(value) == 64 and not set(value) - set("0123456789abcdef")

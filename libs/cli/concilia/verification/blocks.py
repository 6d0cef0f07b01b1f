"""Headers and receipts that show a contract's events to be those of a chain: checked without asking anybody. Pure.

A header hashes to its block's hash, a block's receipts to the header's `receiptsRoot`, and the logs are in the
receipts. Where the headers follow one another without a gap, each names its parent, and a header's bloom says whether
its block can hold a log of the contract at all: then nothing was left out in between, and one hash that the reader
trusts, the last block's, vouches for everything.

Source: Ethereum yellow paper, section 4.3 and appendices B to D; EIP-2718 (typed receipts).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import rlp
from concilia_kit.wire.base import Wire
from concilia_kit.wire.verification import Finding
from eth_utils.crypto import keccak
from trie.hexary import HexaryTrie

from concilia.verification import decoding
from concilia.verification.decoding import ChainEvent

_FIELDS = (
    "parentHash",
    "sha3Uncles",
    "miner",
    "stateRoot",
    "transactionsRoot",
    "receiptsRoot",
    "logsBloom",
    "difficulty",
    "number",
    "gasLimit",
    "gasUsed",
    "timestamp",
    "extraData",
    "mixHash",
    "nonce",
    "baseFeePerGas",
    "withdrawalsRoot",
    "blobGasUsed",
    "excessBlobGas",
    "parentBeaconBlockRoot",
    "requestsHash",
)
_NUMBERS = frozenset(
    {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas", "blobGasUsed", "excessBlobGas"}
)
_NUMBER_BYTES = 8
_LEAST_FIELDS = 15  # before London
_PARENT, _RECEIPTS, _BLOOM, _NUMBER = (
    _FIELDS.index(name) for name in ("parentHash", "receiptsRoot", "logsBloom", "number")
)


class Blocks(Wire):
    """Headers by ascending number, and the receipts of the blocks that hold events by number; RLP as hexadecimal."""

    headers: tuple[str, ...]
    receipts: dict[int, tuple[str, ...]]

    def notes(self) -> Iterator[str]:
        """What these headers and receipts do not show."""
        try:
            found = [_header(each) for each in self.headers]
        except ValueError:
            return  # a finding already
        if not found:
            return
        last = found[-1]
        yield (
            "no chain was asked whether these blocks are its own: "
            f"compare the hash of block {last.number}, 0x{last.hash.hex()}, with that of a node you trust"
        )
        if last.number - found[0].number + 1 != len(found):
            yield "the headers have gaps: that no event was left out between them is not shown"


class Header(NamedTuple):
    """What is needed of a header."""

    number: int
    hash: bytes
    parent: bytes
    receipts_root: bytes
    bloom: bytes


class Log(NamedTuple):
    """One log of the contract as a receipt holds it; `place` is its index within the block."""

    place: int
    topics: list[bytes]
    data: bytes


def encode_header(block: Mapping[str, Any]) -> bytes:
    """A block's header as JSON-RPC tells it, in RLP. Raises `ValueError` where that is not the block's header."""
    present = [name for name in _FIELDS if block.get(name) is not None]
    told = {name: _field(name, block[name]) for name in present}
    # What nodes add to the truth, found by the hash: fields of later forks that the block does not have, and zeros in
    # place of no extra data (eth-tester).
    for extra in dict.fromkeys((told["extraData"], told["extraData"].lstrip(b"\0"))):
        for length in range(len(present), _LEAST_FIELDS - 1, -1):
            encoded: bytes = rlp.encode([(told | {"extraData": extra})[name] for name in present[:length]])
            if keccak(encoded) == _octets(block["hash"]):
                return encoded
    raise ValueError(f"the header of block {int(str(block['number']), 16)} does not hash to the block's hash")


def may_hold(header: bytes, contract: str) -> bool:
    """Whether a header's bloom leaves open that its block holds a log of the contract. Raises `ValueError`."""
    return _may_hold(_header(header.hex()).bloom, bytes.fromhex(contract[2:]))


def encode_receipt(receipt: Mapping[str, Any]) -> bytes:
    """A receipt as JSON-RPC tells it, as it stands in the receipts' trie."""
    outcome = _octets(receipt["root"]) if receipt.get("root") else _field("difficulty", receipt["status"])
    logs = [
        [_octets(log["address"]), [_octets(topic) for topic in log["topics"]], _octets(log["data"])]
        for log in receipt["logs"]
    ]
    bloom = _bloom(_octets(each) for log in receipt["logs"] for each in (log["address"], *log["topics"]))
    body: bytes = rlp.encode([outcome, _field("gasUsed", receipt["cumulativeGasUsed"]), bloom, logs])
    kind = int(str(receipt.get("type") or "0x0"), 16)
    return bytes([kind]) + body if kind else body


def receipts_root(receipts: Sequence[bytes]) -> bytes:
    """The root of the trie over receipts by their index in the block."""
    made = HexaryTrie({})
    for index, receipt in enumerate(receipts):
        made[rlp.encode(index)] = receipt
    return bytes(made.root_hash)


def check(blocks: Blocks, contract: str, events: Iterable[ChainEvent], findings: list[Finding]) -> bool:
    """Compare events with what headers and receipts hold; adds what disagrees. True where everything agrees."""
    before = len(findings)
    by_block: dict[int, dict[int, ChainEvent]] = defaultdict(dict)
    for event in events:
        by_block[event.block][event.log_index] = event
    address = bytes.fromhex(contract[2:])
    headers: dict[int, Header] = {}
    previous: Header | None = None
    for each in blocks.headers:
        try:
            header = _header(each)
        except ValueError as error:
            _find(findings, f"a block header is malformed: {error}")
            continue
        if previous is not None and header.number <= previous.number:
            _find(findings, f"the header of block {header.number} is not in order")
        elif previous is not None and header.number == previous.number + 1 and header.parent != previous.hash:
            _find(findings, f"block {header.number} does not name block {previous.number} as its parent")
        if header.number not in blocks.receipts and _may_hold(header.bloom, address):
            _find(findings, f"block {header.number} may hold events of the contract, and has no receipts")
        headers[header.number] = previous = header
    for number in sorted({*blocks.receipts, *by_block}):
        told = by_block.get(number, {})
        try:
            shown = _events_in(blocks.receipts.get(number, ()), headers.get(number), address)
        except ValueError as error:
            for event in told.values():
                _find(findings, f"block {number}: {error}", event)
            if not told:
                _find(findings, f"block {number}: {error}")
            continue
        for index in sorted({*told, *shown}):
            if (found := told.get(index)) is None:
                _find(findings, f"block {number} holds a {shown[index][0]} that the events leave out")
            elif (found.name, found.arguments) != shown.get(index):
                _find(findings, f"block {number} holds another event than this {found.name}", found)
    return len(findings) == before


def _events_in(
    receipts: Sequence[str], header: Header | None, address: bytes
) -> dict[int, tuple[str, decoding.Arguments]]:
    if header is None:
        raise ValueError("its header is missing")
    try:
        raw = [bytes.fromhex(each) for each in receipts]
    except ValueError as error:
        raise ValueError("a receipt is no hexadecimal") from error
    if not all(raw) or receipts_root(raw) != header.receipts_root:
        raise ValueError("its receipts do not hash to its header's receiptsRoot")
    try:
        logs = [(log.place, decoding.event(log.topics, log.data)) for log in _logs(raw, address)]
    except (TypeError, IndexError) as error:
        raise ValueError("a receipt has not a receipt's shape") from error
    return {place: event for place, event in logs if event is not None}


def _logs(receipts: Iterable[bytes], address: bytes) -> Iterator[Log]:
    index = 0
    for receipt in receipts:
        _outcome, _gas, _bloom, logs = _decoded(receipt[1:] if receipt[0] < 0x80 else receipt, 4)
        for emitter, topics, data in logs:
            if emitter == address:
                yield Log(index, topics, data)
            index += 1


def _header(text: str) -> Header:
    raw = bytes.fromhex(text)
    fields = _decoded(raw, None)
    if not _LEAST_FIELDS <= len(fields) <= len(_FIELDS) or not all(isinstance(field, bytes) for field in fields):
        raise ValueError("no header's fields")
    if len(fields[_NUMBER]) > _NUMBER_BYTES:
        raise ValueError("no block's number")
    return Header(
        int.from_bytes(fields[_NUMBER], "big"), keccak(raw), fields[_PARENT], fields[_RECEIPTS], fields[_BLOOM]
    )


def _decoded(raw: bytes, length: int | None) -> list[Any]:
    try:
        value = rlp.decode(raw)
    except (rlp.DecodingError, RecursionError) as error:
        raise ValueError("no RLP") from error
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError("not the list that was expected")
    return value


def _bloom(values: Iterable[bytes]) -> bytes:
    """The bloom over addresses and topics: three of 2,048 bits for each."""
    bits = 0
    for value in values:
        hashed = keccak(value)
        for at in (0, 2, 4):
            bits |= 1 << (int.from_bytes(hashed[at : at + 2], "big") & 2047)
    return bits.to_bytes(256, "big")


def _may_hold(bloom: bytes, address: bytes) -> bool:
    """Whether a bloom can be that of a block with a log of this address."""
    wanted = int.from_bytes(_bloom([address]), "big")
    return int.from_bytes(bloom, "big") & wanted == wanted


def _field(name: str, value: Any) -> bytes:
    if name in _NUMBERS:
        number = int(str(value), 16)
        return number.to_bytes((number.bit_length() + 7) // 8, "big")
    return _octets(value).rjust(256, b"\0") if name == "logsBloom" else _octets(value)


def _octets(value: Any) -> bytes:
    return bytes.fromhex(str(value).removeprefix("0x"))


def _find(findings: list[Finding], what: str, event: ChainEvent | None = None) -> None:
    findings.append(event.finding(what) if event else Finding(round=0, hospital=None, digest=None, what=what))

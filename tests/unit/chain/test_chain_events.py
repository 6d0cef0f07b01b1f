"""Logs and calldata decoded, also where a wallet wraps the call."""

from __future__ import annotations

from pathlib import Path

from concilia_chain import contract_file
from concilia_chain.events import EventReader, RawLog, Submitted
from concilia_chain.settings import ChainSettings
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

ABI = contract_file.read(Path(str(ChainSettings.model_fields["contract_file"].default))).abi
READER = EventReader(ABI)
HOSPITAL = "0x52908400098527886E0F7030069857D2E4169EE7"
UPDATE = "(address,bytes32,uint64,bytes32,bytes)"
SELECTOR = keccak(text=f"submitUpdates(bytes32,uint32,bytes32,{UPDATE}[])")[:4]


def calldata(*signatures: bytes) -> bytes:
    updates = [(HOSPITAL, bytes([n]) * 32, 5, bytes(32), signature) for n, signature in enumerate(signatures)]
    return SELECTOR + encode(["bytes32", "uint32", "bytes32", f"{UPDATE}[]"], [b"j" * 32, 1, b"b" * 32, updates])


def log(topics: list[bytes], data: bytes) -> RawLog:
    return RawLog(topics, data, block=7, block_hash="0x01", log_index=2, transaction="0x02", timestamp=1_700_000_000)


def test_an_update() -> None:
    topic = keccak(text="UpdateRecorded(bytes32,uint32,address,bytes32,uint64,bytes32)")
    indexed = [
        encode([kind], [value]) for kind, value in (("bytes32", b"j" * 32), ("uint32", 3), ("address", HOSPITAL))
    ]
    data = encode(["bytes32", "uint64", "bytes32"], [b"d" * 32, 2**64 - 1, b"m" * 32])
    event = READER.event(log([topic, *indexed], data))
    assert event is not None
    assert (event.name, event.job, event.round, event.account) == ("UpdateRecorded", "6a" * 32, 3, HOSPITAL)
    assert list(event.arguments) == ["job", "round", "hospital", "digest", "samples", "metrics"]
    assert event.arguments["samples"] == 2**64 - 1
    assert event.arguments["digest"] == "64" * 32


def test_a_grant_concerns_no_job() -> None:
    topic = keccak(text="RoleGranted(bytes32,address,address)")
    account = encode(["address"], [HOSPITAL])
    event = READER.event(log([topic, b"r" * 32, account, account], b""))
    assert event is not None
    assert (event.job, event.round, event.account) == (None, None, HOSPITAL)


def test_foreign_logs() -> None:
    assert READER.event(log([], b"")) is None
    assert READER.event(log([b"x" * 32], b"")) is None


def test_submissions() -> None:
    expected = [Submitted(HOSPITAL, "00" * 32, "0x" + "aa" * 65), Submitted(HOSPITAL, "01" * 32, "0xbb")]
    plain = calldata(b"\xaa" * 65, b"\xbb")
    assert READER.submissions(plain) == expected
    wrapped = keccak(text="multicall(bytes[])")[:4] + encode(["bytes[]"], [[plain, calldata(b"\xcc")]])
    assert READER.submissions(wrapped) == [*expected, Submitted(HOSPITAL, "00" * 32, "0xcc")]


@given(st.binary(max_size=300), st.booleans())
def test_any_calldata_is_read_or_not(data: bytes, with_selector: bool) -> None:
    assert isinstance(READER.submissions(SELECTOR + data if with_selector else data), list)

"""Revert data read by name, whatever a node wraps it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from concilia_chain import contract_file
from concilia_chain.refusals import Refusal, RefusalReader
from concilia_chain.settings import ChainSettings
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

ABI = contract_file.read(Path(str(ChainSettings.model_fields["contract_file"].default))).abi
ERRORS = [entry for entry in ABI if entry["type"] == "error"]
READER = RefusalReader(ABI)
SAMPLE = {"address": "0x" + "ab" * 20, "bytes32": b"\x07" * 32, "string": "x"}


def revert_data(name: str, types: list[str], values: list[Any]) -> bytes:
    return keccak(text=f"{name}({','.join(types)})")[:4] + encode(types, values)


@pytest.mark.parametrize("entry", ERRORS, ids=lambda entry: str(entry["name"]))
def test_every_error_of_the_abi(entry: Any) -> None:
    types = [each["type"] for each in entry["inputs"]]
    data = revert_data(entry["name"], types, [SAMPLE.get(kind, 5) for kind in types])
    read = READER.read(data)
    assert read.name == entry["name"]
    assert list(read.arguments) == [each["name"] for each in entry["inputs"]]
    assert 400 <= read.status < 500
    json.dumps(read.arguments)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NotHospital", "not_hospital"),
        ("RoundNotOpen", "round_not_open"),
        ("EnforcedPause", "enforced_pause"),
        ("ECDSAInvalidSignatureLength", "ecdsa_invalid_signature_length"),
        ("AccessControlUnauthorizedAccount", "access_control_unauthorized_account"),
    ],
)
def test_codes(name: str, code: str) -> None:
    assert Refusal(name, {}).code == code


def test_errors_of_libraries() -> None:
    assert READER.read(revert_data("Panic", ["uint256"], [0x11])) == Refusal("Panic", {"argument0": 0x11})
    assert READER.read(revert_data("ECDSAInvalidSignatureLength", ["uint256"], [64])).status == 422


@pytest.mark.parametrize("member", ["0x", None, {}, {"result": None}, "no hexadecimal", 7])
def test_nothing_that_can_be_read(member: object) -> None:
    assert READER.read_error(member).name == "Revert"


def test_what_nodes_wrap_it_in() -> None:
    data = revert_data("NotHospital", ["address"], ["0x" + "ab" * 20])
    expected = Refusal("NotHospital", {"account": "0xABaBaBaBABabABabAbAbABAbABabababaBaBABaB"})
    assert READER.read_error("0x" + data.hex()) == expected
    assert READER.read_error({"result": "0x" + data.hex()}) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_some_refusal(data: bytes) -> None:
    assert READER.read(data).status >= 400


@given(st.sampled_from(ERRORS), st.binary(max_size=63))
def test_truncated_arguments_are_no_crash(entry: Any, rest: bytes) -> None:
    types = ",".join(each["type"] for each in entry["inputs"])
    assert READER.read(keccak(text=f"{entry['name']}({types})")[:4] + rest).status >= 400

"""What the chain service's description says, which Schemathesis holds against its answers (tests/security)."""

from __future__ import annotations

from typing import Any

import pytest
from concilia_chain import api, rpc
from concilia_kit import web
from concilia_kit.signing import ADDRESS_FORMAT, RoleChange
from concilia_kit.wire.chain import Rejection, RoundOpening
from pydantic import ValidationError

OPENING = {"job": "a" * 64, "round": 1, "base": "b" * 64, "deadline": 1, "quorum": 1}
CHANGE = {"role": "admin", "account": "0x" + 40 * "1", "granted": True, "nonce": 0, "deadline": 0}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    app = web.application("Concilia chain", ready={})
    app.include_router(api.router)
    return app.openapi()


def test_a_relay_says_that_the_contract_may_refuse(described: dict[str, Any]) -> None:
    told = described["paths"]["/v1/rounds"]["post"]["responses"]
    assert {"200", "201", "403", "404", "409", "422", "503"} <= set(told)
    assert all("contract_error" in told[status]["description"] for status in ("403", "404", "409", "422"))
    assert "`gateway_standby`" in told["503"]["description"]


def test_a_request_of_json_rpc_may_be_a_notification(described: dict[str, Any]) -> None:
    body = described["paths"]["/v1/rpc"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    one = body["oneOf"][0]
    assert one["required"] == ["jsonrpc", "method"]
    assert one["properties"]["id"]["maxLength"] == rpc.MAX_ID


def test_an_address_is_described_by_its_form(described: dict[str, Any]) -> None:
    [address] = described["paths"]["/v1/members/{address}"]["get"]["parameters"]
    assert address["schema"]["format"] == ADDRESS_FORMAT
    assert address["schema"]["pattern"] == "^0x[0-9a-fA-F]{40}$"


def test_what_the_contract_counts_in_256_bits_is_described_exactly(described: dict[str, Any]) -> None:
    change = described["components"]["schemas"]["RoleChange"]["properties"]
    assert change["nonce"]["exclusiveMaximum"] == change["deadline"]["exclusiveMaximum"] == 2**256


@pytest.mark.parametrize(
    "wrong", [{"round": True}, {"round": "1"}, {"quorum": 0}, {"merkle": "yes"}, {"expected": True}]
)
def test_an_opening_of_other_types_is_refused(wrong: dict[str, Any]) -> None:
    RoundOpening.model_validate(OPENING)
    with pytest.raises(ValidationError):
        RoundOpening.model_validate(OPENING | wrong)


@pytest.mark.parametrize("wrong", [{"granted": 1}, {"granted": "true"}, {"nonce": 2**256}, {"deadline": "0"}])
def test_a_role_change_of_other_types_is_refused(wrong: dict[str, Any]) -> None:
    RoleChange.model_validate(CHANGE)
    with pytest.raises(ValidationError):
        RoleChange.model_validate(CHANGE | wrong)


@pytest.mark.parametrize("reason", [True, "1", 0, 10])
def test_a_reason_is_one_of_the_contract_s_numbers(reason: Any) -> None:
    with pytest.raises(ValidationError):
        Rejection.model_validate({"hospital": "0x" + 40 * "1", "reason": reason})

"""EIP-4361's published vectors, and what the auth service makes of each.

They are those of spruceid/siwe, read from `shared/vectors/siwe` beside the checkout. Where they are not there, a
handful of our own is used, spelt out here without the library that the service parses with. Which was used is told at
the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from concilia_auth import eip4361, errors
from concilia_auth.eip4361 import Site
from concilia_chain import contract_file, main, providers
from concilia_chain.in_process import InProcessProvider, WallClockBackend, WallClockVM
from concilia_chain.signatures import Signatures
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import SignatureCheck
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_tester import EthereumTester, PyEVMBackend
from eth_utils.address import to_canonical_address, to_checksum_address

from tests.integration.chain import contract_wallets

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "vectors" / "siwe"
PUBLISHED = {
    "parsing_positive": 19,
    "parsing_negative": 29,
    "parsing_negative_objects": 18,
    "verification_positive": 4,
    "verification_negative": 10,
    "eip1271": 2,
}

Fields = dict[str, Any]
Tell = Callable[[str], None]


def spelt(fields: Fields) -> str:
    """A message as EIP-4361 writes these fields, whatever they hold; what is missing is left out."""
    lines = [f"{fields.get('domain', '')} wants you to sign in with your Ethereum account:", fields.get("address", "")]
    lines += ["", fields["statement"], ""] if "statement" in fields else ["", ""]
    for label, name in (
        ("URI", "uri"),
        ("Version", "version"),
        ("Chain ID", "chainId"),
        ("Nonce", "nonce"),
        ("Issued At", "issuedAt"),
        ("Expiration Time", "expirationTime"),
        ("Not Before", "notBefore"),
        ("Request ID", "requestId"),
    ):
        if name in fields:
            lines.append(f"{label}: {fields[name]}")
    if "resources" in fields:
        lines += ["Resources:", *(f"- {each}" for each in fields["resources"])]
    return "\n".join(lines)


def own_vectors() -> dict[str, dict[str, Any]]:
    """A handful of each kind, signed with keys that everybody knows."""
    key, stranger = Account.from_key("0x" + 63 * "0" + "1"), Account.from_key("0x" + 63 * "0" + "2")
    least: Fields = {
        "domain": "service.example",
        "address": key.address,
        "uri": "https://service.example/login",
        "version": "1",
        "chainId": 1,
        "nonce": "32891757",
        "issuedAt": "2021-09-30T16:25:24.000Z",
    }
    full: Fields = {
        **least,
        "statement": "I accept the terms: https://service.example/tos",
        "expirationTime": "2100-01-07T14:31:43.952Z",
        "notBefore": "2021-09-30T16:25:24.000Z",
        "requestId": "some_id",
        "resources": ["ipfs://Qme7ss3ARVgxv6rXqVPiikMJ8u2NLgmgszg13pYrDKEoiu", "https://example.com/a.json"],
    }
    port = {**full, "domain": "127.0.0.1:8080"}
    ended = {**least, "expirationTime": "2021-10-01T00:00:00Z"}
    early = {**least, "notBefore": "2100-01-07T14:31:43.952Z"}

    wallet = {**full, "address": to_checksum_address("0x" + 20 * "5a")}

    def signed(fields: Fields, by: Any = key, **expected: Any) -> Fields:
        signature = by.sign_message(encode_defunct(text=spelt(fields))).signature.to_0x_hex()
        return {**fields, "signature": signature, **expected}

    wrong: dict[str, Fields] = {
        "no domain": {name: value for name, value in full.items() if name != "domain"},
        "no nonce": {name: value for name, value in full.items() if name != "nonce"},
        "address without checksum": {**full, "address": key.address.lower()},
        "version 2": {**full, "version": "2"},
        "short nonce": {**full, "nonce": "1234567"},
        "date in words": {**full, "issuedAt": "Wed Oct 05 2011 16:48:00 GMT+0200 (CEST)"},
        "resource that is no URI": {**full, "resources": [":no_uri"]},
    }
    spoilt = {
        "order": spelt(full).replace("Version: 1\nChain ID: 1", "Chain ID: 1\nVersion: 1"),
        "statement of two lines": spelt({**full, "statement": "one\ntwo"}),
        "line feed at the end": spelt(full) + "\n",
    }
    return {
        "parsing_positive": {
            name: {"message": spelt(fields), "fields": fields}
            for name, fields in {"least": least, "full": full, "port": port}.items()
        },
        "parsing_negative": spoilt | {name: spelt(fields) for name, fields in wrong.items()},
        "parsing_negative_objects": wrong,
        "verification_positive": {
            "least": signed(least),
            "full": signed(full),
            "before it ended": signed(ended, time="2021-09-30T17:00:00Z"),
            "when it begins": signed(early, time="2101-01-07T14:31:43.952Z"),
        },
        "verification_negative": {
            "ended": signed(ended),
            "early": signed(early),
            "another's key": signed(full, stranger),
            "another domain": signed(full, domainBinding="evil.example"),
            "another nonce": signed(full, matchNonce="12341234"),
            "a signature cut short": {**signed(full), "signature": signed(full)["signature"][:-2]},
            "a day that is none": signed({**least, "issuedAt": "2022-02-31T17:09:38.578Z"}),
        },
        "eip1271": {"wallet": {"message": spelt(wallet), "signature": signed(wallet)["signature"]}},
    }


USED = "published" if SHARED.is_dir() else "own"
VECTORS: dict[str, dict[str, Any]] = (
    {name: json.loads((SHARED / f"{name}.json").read_text()) for name in PUBLISHED}
    if USED == "published"
    else own_vectors()
)


def told(tell: Tell, kind: str, right: int) -> None:
    tell(f"EIP-4361 vectors ({USED}): {kind}, {right} of {len(VECTORS[kind])} as they must be")


def test_all_vectors_are_there() -> None:
    assert {name: len(each) for name, each in VECTORS.items()} == PUBLISHED or USED == "own"
    assert all(VECTORS.get(name) for name in PUBLISHED)


def test_vectors_of_our_own_are_taken_as_they_must_be() -> None:
    """Also where others are used: these are what is used elsewhere."""
    own = own_vectors()
    for each in own["parsing_positive"].values():
        assert read(each["message"]) == each["fields"]
    for kind in ("parsing_negative", "parsing_negative_objects"):
        for each in own[kind].values():
            with pytest.raises(errors.MessageMalformed):
                eip4361.parse(each if isinstance(each, str) else spelt(each))
    for each in own["verification_positive"].values():
        verify(each)
    for each in own["verification_negative"].values():
        with pytest.raises(Problem):
            verify(each)


def read(text: str) -> Fields:
    """A parsed message's fields under the names that the vectors have for them."""
    message = eip4361.parse(text)
    found = {
        "domain": message.domain,
        "address": message.address,
        "statement": message.statement,
        "uri": message.uri,
        "version": str(message.version),
        "chainId": message.chain_id,
        "nonce": message.nonce,
        "issuedAt": str(message.issued_at),
        "expirationTime": message.expiration_time,
        "notBefore": message.not_before,
        "requestId": message.request_id,
        "resources": message.resources,
        "scheme": message.scheme,
    }
    return {name: value for name, value in found.items() if value is not None}


def test_messages_that_are_right(tell: Tell) -> None:
    right = 0
    for name, vector in VECTORS["parsing_positive"].items():
        expected = {key: value for key, value in vector["fields"].items() if value is not None}
        assert read(vector["message"]) == expected, name
        right += 1
    told(tell, "parsing_positive", right)


def test_messages_that_are_wrong(tell: Tell) -> None:
    right = 0
    for name, text in VECTORS["parsing_negative"].items():
        with pytest.raises(errors.MessageMalformed):
            pytest.fail(f"{name}: taken as {eip4361.parse(text)}")
        right += 1
    told(tell, "parsing_negative", right)


def test_fields_that_make_no_message(tell: Tell) -> None:
    right = 0
    for name, fields in VECTORS["parsing_negative_objects"].items():
        with pytest.raises(errors.MessageMalformed):
            pytest.fail(f"{name}: taken as {eip4361.parse(spelt(fields))}")
        right += 1
    told(tell, "parsing_negative_objects", right)


def verify(vector: Fields) -> None:
    """What the service does with a message and a signature, at a site that is the vector's. Raises `Problem`."""
    eip4361.verify(
        eip4361.parse(spelt(vector)),
        vector["signature"],
        Site(vector.get("domainBinding", vector["domain"]), vector["uri"], ""),
        chain_id=vector["chainId"],
        nonce=vector.get("matchNonce", vector["nonce"]),
        now=datetime.fromisoformat(vector["time"]) if "time" in vector else datetime.now(UTC),
        skew=None,  # one of them is verified years before it was issued
    )


def test_signatures_that_are_right(tell: Tell) -> None:
    right = 0
    for vector in VECTORS["verification_positive"].values():
        verify(vector)
        right += 1
    told(tell, "verification_positive", right)


def test_signatures_that_are_wrong(tell: Tell) -> None:
    right = 0
    for name, vector in VECTORS["verification_negative"].items():
        with pytest.raises(Problem) as refused:
            verify(vector)
        reason = {
            "expired message": errors.MessageExpired,
            "domain binding": errors.DomainMismatch,
            "custom time": errors.MessageExpired,
            "custom nonce": errors.NonceUnknown,
            "malformed signature": errors.SignatureInvalid,
            "wrong signature": errors.SignatureInvalid,
            "not yet valid": errors.MessageNotYetValid,
            "invalid issuedAt": errors.MessageMalformed,
            "invalid notBefore": errors.MessageMalformed,
            "invalid expirationTime": errors.MessageMalformed,
        }.get(name, Problem)
        assert isinstance(refused.value, reason), name
        right += 1
    told(tell, "verification_negative", right)


def code_of_wallet(kind: str, owner: str) -> bytes:
    """The code that a wallet of an owner has once it is deployed."""
    payer = contract_wallets.new_key()
    client = providers.connect("eth-tester://", funded=[payer.address])
    address = contract_wallets.Maker(client, payer).deploy(contract_wallets.creation(kind, owner))
    return bytes(client.eth.get_code(to_checksum_address(address)))


class ChosenBackend(WallClockBackend):
    """A chain on which contracts lie at addresses that were chosen elsewhere."""

    def __init__(self, code: dict[str, bytes]) -> None:
        accounts = {
            to_canonical_address(address): {"balance": 0, "nonce": 1, "code": each, "storage": {}}
            for address, each in code.items()
        }
        PyEVMBackend.__init__(self, vm_configuration=((0, WallClockVM),), genesis_state=accounts)


def chain_with(code: dict[str, bytes]) -> Signatures:
    provider = InProcessProvider(EthereumTester(ChosenBackend(code)))
    return Signatures(provider, contract_file.read(main.VALIDATOR).bytecode)


def test_signatures_of_contract_wallets(tell: Tell) -> None:
    """The two are of wallets on Ethereum: one takes its owner's signature, the other wants a byte behind it that says
    of what kind it is. Wallets that do the same stand at their addresses here, of the owner that the signature names.
    """
    right = 0
    for name, vector in VECTORS["eip1271"].items():
        text, signature = vector["message"], vector["signature"]
        message = eip4361.parse(text)
        site = Site(message.domain, message.uri, "")
        with pytest.raises(errors.SignatureInvalid):  # all else is right, and no key of this address signed
            eip4361.verify(
                message,
                signature,
                site,
                chain_id=message.chain_id,
                nonce=message.nonce,
                now=datetime.fromisoformat(message.issued_at) + timedelta(seconds=1),
            )
        owner = Account.recover_message(encode_defunct(text=text), signature=signature[: 2 + 130])
        kind = "TestWallet" if len(signature) == 2 + 130 else "TestTypedWallet"
        there = chain_with({message.address: code_of_wallet(kind, owner)})
        digest = eip4361.digest(text).hex()
        check = SignatureCheck(address=message.address, digest=digest, signature=signature)
        assert there.is_valid(check), name
        other = check.model_copy(update={"digest": eip4361.digest(text + " ").hex()})
        assert not there.is_valid(other), name
        strangers = chain_with({message.address: code_of_wallet(kind, contract_wallets.new_key().address)})
        assert not strangers.is_valid(check), name
        assert not chain_with({}).is_valid(check), name
        right += 1
    told(tell, "eip1271", right)

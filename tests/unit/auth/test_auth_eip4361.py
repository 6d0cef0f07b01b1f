"""Sign-in messages: what is built parses, what is refused has its own code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from concilia_auth import eip4361, errors
from concilia_auth.eip4361 import Site
from concilia_kit.problems import Problem
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SITE = Site("127.0.0.1:8000", "http://127.0.0.1:8000", "Sign in to Concilia.")
NONCE = "abcdefgh12345678x"
# letters in it, so that its lower-case spelling is another text
ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
Sign = Callable[[LocalAccount, str], str]


def text(**changes: Any) -> str:
    return eip4361.build(
        **{
            "site": SITE,
            "address": ADDRESS,
            "chain_id": 1337,
            "nonce": NONCE,
            "issued_at": NOW,
            "expires_at": NOW + timedelta(minutes=5),
            **changes,
        }
    )


def verify(message: str, signature: str, **changes: Any) -> None:
    eip4361.verify(
        eip4361.parse(message),
        signature,
        **{"site": SITE, "chain_id": 1337, "nonce": NONCE, "now": NOW, **changes},
    )


def test_auth_builds_the_message_the_standard_shows() -> None:
    assert text() == (
        "127.0.0.1:8000 wants you to sign in with your Ethereum account:\n"
        f"{ADDRESS}\n"
        "\n"
        "Sign in to Concilia.\n"
        "\n"
        "URI: http://127.0.0.1:8000\n"
        "Version: 1\n"
        "Chain ID: 1337\n"
        f"Nonce: {NONCE}\n"
        "Issued At: 2026-11-24T12:00:00.000Z\n"
        "Expiration Time: 2026-11-24T12:05:00.000Z"
    )


def test_auth_parses_what_it_builds() -> None:
    message = eip4361.parse(text())
    assert (message.domain, message.address, message.nonce, message.chain_id) == (SITE.domain, ADDRESS, NONCE, 1337)
    assert eip4361.nonce_of(text()) == NONCE


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(text().replace(ADDRESS, ADDRESS.lower()), id="address in lower case"),
        pytest.param(text().replace(ADDRESS, "0x" + ADDRESS[2:].upper()), id="address in upper case"),
        pytest.param(text().replace("0x5aAeb", "0x5Aaeb"), id="wrong checksum"),
        pytest.param(text().replace("Version: 1", "Version: 2"), id="version"),
        pytest.param(text().replace("Chain ID: 1337", "Chain ID: 01337"), id="second spelling of a number"),
        pytest.param(text().replace("Issued At: 2026-11-24", "Issued At: 2026-02-30"), id="a day that is none"),
        pytest.param(text().replace("Issued At: 2026-11-24T12:00:00.000Z\n", ""), id="no issued-at"),
        pytest.param(text().replace("URI: http://127.0.0.1:8000", "URI: not a uri"), id="uri"),
        pytest.param(text() + "\n", id="trailing line feed"),
        pytest.param(text().replace("\n", "\r\n"), id="carriage returns"),
        pytest.param(text().replace("Concilia.", "Concilia\u2026"), id="statement beyond ASCII"),
        pytest.param(text().replace("Concilia.", "\ud800"), id="lone surrogate"),
        pytest.param(text() + "\nResources:" + "\n- http://a" * 100, id="too long"),
        pytest.param("", id="empty"),
    ],
)
def test_auth_refuses_a_malformed_message(changed: str) -> None:
    with pytest.raises(errors.MessageMalformed):
        eip4361.parse(changed)


@pytest.mark.parametrize(
    "claimed", ["", "Nonce: ", "Nonce: short", "Nonce: " + 65 * "a", 2000 * "a" + "\nNonce: 12345678"]
)
def test_auth_finds_no_nonce(claimed: str) -> None:
    with pytest.raises(errors.MessageMalformed):
        eip4361.nonce_of(claimed)


@given(st.text(max_size=300))
def test_auth_any_text_parses_or_is_malformed(anything: str) -> None:
    for work in (eip4361.parse, eip4361.nonce_of):
        try:
            work(anything)
        except errors.MessageMalformed:
            continue


@settings(max_examples=60)
@given(st.data())
def test_auth_one_changed_character_never_verifies(data: st.DataObject) -> None:
    account: LocalAccount = Account.from_key("0x" + 64 * "1")
    original = text(address=account.address)
    signature = str(account.sign_message(encode_defunct(text=original)).signature.to_0x_hex())
    at = data.draw(st.integers(0, len(original) - 1))
    other = data.draw(st.characters(min_codepoint=10, max_codepoint=126).filter(lambda it: it != original[at]))
    with pytest.raises(Problem):
        verify(original[:at] + other + original[at + 1 :], signature)


def test_auth_verifies_its_signer(account: LocalAccount, sign: Sign) -> None:
    message = text(address=account.address)
    verify(message, sign(account, message))
    with_scheme = "http://" + message
    verify(with_scheme, sign(account, with_scheme))


@pytest.mark.parametrize(
    ("built", "verified", "error"),
    [
        ({"site": Site("evil.example", SITE.uri, "x")}, {}, errors.DomainMismatch),
        ({"site": Site("127.0.0.1", SITE.uri, "x")}, {}, errors.DomainMismatch),
        ({"site": Site(SITE.domain, "http://evil.example", "x")}, {}, errors.UriMismatch),
        ({"chain_id": 1}, {}, errors.ChainMismatch),
        ({"nonce": "anothernonce12345"}, {}, errors.NonceUnknown),
        ({"expires_at": NOW}, {}, errors.MessageExpired),
        ({}, {"now": NOW + timedelta(minutes=5)}, errors.MessageExpired),
        ({"issued_at": NOW + timedelta(seconds=61)}, {}, errors.MessageNotYetValid),
    ],
)
def test_auth_each_refusal_has_its_error(
    account: LocalAccount, sign: Sign, built: dict[str, Any], verified: dict[str, Any], error: type[Problem]
) -> None:
    message = text(address=account.address, **built)
    with pytest.raises(error):
        verify(message, sign(account, message), **verified)


def test_auth_refuses_the_other_scheme(account: LocalAccount, sign: Sign) -> None:
    message = "https://" + text(address=account.address)
    with pytest.raises(errors.DomainMismatch):
        verify(message, sign(account, message))


def test_auth_refuses_a_message_before_its_time(account: LocalAccount, sign: Sign) -> None:
    message = text(address=account.address) + "\nNot Before: 2026-11-24T12:00:01.000Z"
    with pytest.raises(errors.MessageNotYetValid):
        verify(message, sign(account, message))
    verify(message, sign(account, message), now=NOW + timedelta(seconds=1))


def test_auth_refuses_foreign_and_broken_signatures(account: LocalAccount, sign: Sign) -> None:
    message = text(address=account.address)
    foreign = sign(Account.create(), message)
    right = sign(account, message)
    for signature in (foreign, right[:-2], right + "00", "0x00", "0x" + 65 * "ff", "0x" + 65 * "00", right[:-2] + "1d"):
        with pytest.raises(errors.SignatureInvalid):
            verify(message, signature)


def test_auth_nonces_cannot_be_guessed() -> None:
    made = [eip4361.new_nonce() for _ in range(2000)]
    assert len(set(made)) == len(made)
    assert {len(nonce) for nonce in made} == {22}
    seen = Counter("".join(made))
    assert math.log2(len(seen)) * 22 > 128
    assert max(seen.values()) < 1.3 * min(seen.values())
    assert eip4361.nonce_of(f"Nonce: {made[0]}") == made[0]

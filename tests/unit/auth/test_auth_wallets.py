"""Contract wallets at sign-in: asked where all else is right; one suite for the chain service and the double."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from concilia_auth import eip4361, errors, keys, tokens
from concilia_auth.chain import ChainWallets, Wallets
from concilia_auth.errors import ChainUnavailable
from concilia_auth.service import AuthService
from concilia_kit import http
from concilia_kit.tokens import ISSUER, TokenVerifier
from concilia_kit.wire.auth import Audience
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

Sign = Callable[[LocalAccount, str], str]
WALLET = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
SIGNATURE = "0x" + "5a" * 200
Accepted = set[tuple[str, bytes, str]]


@pytest.fixture
def ring(tmp_path: Path) -> keys.KeyRing:
    keys.ensure(tmp_path, datetime.now(UTC))
    return keys.KeyRing(tmp_path)


@pytest.fixture
def own_token(ring: keys.KeyRing) -> Callable[[], str]:
    return lambda: tokens.own(ring.current().signing, Audience.CHAIN, datetime.now(UTC))


@pytest.fixture(params=["memory", "chain"])
def wallets_and_accepted(
    request: pytest.FixtureRequest, own_token: Callable[[], str]
) -> Iterator[tuple[Wallets, Accepted]]:
    if request.param == "memory":
        double = request.getfixturevalue("memory_wallets")
        yield double, double.accepted
        return
    chain_service = request.getfixturevalue("chain_service")
    with http.client(chain_service.url) as client:
        yield ChainWallets(client, own_token), chain_service.accepted


def test_auth_wallets_accept_what_they_accept(wallets_and_accepted: tuple[Wallets, Accepted]) -> None:
    wallets, accepted = wallets_and_accepted
    accepted.add((WALLET, bytes(32), SIGNATURE))
    assert wallets.accept(WALLET, bytes(32), SIGNATURE)
    assert not wallets.accept(WALLET, bytes(31) + b"\1", SIGNATURE)
    assert not wallets.accept(WALLET, bytes(32), "0x")
    assert not wallets.accept("0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359", bytes(32), SIGNATURE)


def test_auth_asks_the_chain_service_with_a_token_that_nobody_else_gets(
    chain_service: Any, ring: keys.KeyRing, own_token: Callable[[], str]
) -> None:
    with http.client(chain_service.url) as client:
        ChainWallets(client, own_token).accept(WALLET, bytes(32), SIGNATURE)
    (token,) = chain_service.tokens
    caller = TokenVerifier(Audience.CHAIN, lambda: ring.current().published).verify(token)
    assert (caller.address, caller.roles) == (ISSUER, frozenset())
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 60


@pytest.mark.parametrize(
    "respond",
    [
        lambda _: httpx.Response(403, json={"code": "forbidden", "detail": "only the auth service asks for this"}),
        lambda _: httpx.Response(200, json={"valid": "perhaps"}),
        lambda _: httpx.Response(200, text="<html>"),
        lambda _: httpx.Response(503, json={"code": "chain_unavailable", "detail": "the node does not answer"}),
    ],
)
def test_auth_wallets_that_cannot_be_asked_are_unavailable(
    respond: Callable[[httpx.Request], httpx.Response], own_token: Callable[[], str]
) -> None:
    with http.client("http://chain", transport=httpx.MockTransport(respond)) as client:
        wallets = ChainWallets(client, own_token)
        with pytest.raises(ChainUnavailable):
            wallets.accept(WALLET, bytes(32), SIGNATURE)


def test_auth_wallet_signs_in_once(service: AuthService, memory_wallets: Any) -> None:
    message = service.challenge(WALLET).message
    memory_wallets.accepted.add((WALLET, eip4361.digest(message), SIGNATURE))
    assert service.sign_in(message, SIGNATURE).address == WALLET
    with pytest.raises(errors.NonceUnknown):
        service.sign_in(message, SIGNATURE)
    assert memory_wallets.asked == 1


def test_auth_wallet_that_accepts_something_else_does_not_sign_in(service: AuthService, memory_wallets: Any) -> None:
    first, second = service.challenge(WALLET).message, service.challenge(WALLET).message
    memory_wallets.accepted.add((WALLET, eip4361.digest(first), SIGNATURE))
    with pytest.raises(errors.SignatureInvalid):
        service.sign_in(second, SIGNATURE)


def test_auth_asks_no_wallet_where_a_key_signed(
    service: AuthService, memory_wallets: Any, account: LocalAccount, sign: Sign
) -> None:
    message = service.challenge(account.address).message
    service.sign_in(message, sign(account, message))
    assert memory_wallets.asked == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("127.0.0.1:8000 wants", "evil.example wants"),
        lambda text: text.replace("URI: http://127.0.0.1:8000", "URI: http://evil.example"),
        lambda text: text.replace("Chain ID: 1337", "Chain ID: 1"),
        lambda text: text.split("Expiration")[0] + "Expiration Time: 2020-01-01T00:00:00Z",
        lambda text: text.replace(WALLET, Account.create().address),
        lambda text: text + " ",
    ],
)
def test_auth_asks_no_wallet_about_a_message_that_is_not_right(
    service: AuthService, memory_wallets: Any, change: Callable[[str], str]
) -> None:
    with pytest.raises((errors.Unauthorized, errors.MessageMalformed)):
        service.sign_in(change(service.challenge(WALLET).message), SIGNATURE)
    assert memory_wallets.asked == 0


def test_auth_digest_is_what_a_key_signs(account: LocalAccount, sign: Sign) -> None:
    signature = account.unsafe_sign_hash(eip4361.digest("hello")).signature
    assert Account.recover_message(encode_defunct(text="hello"), signature=signature) == account.address

"""Signing in, on a real Redis with a clock that is set by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pytest
import redis
from concilia_auth import eip4361, errors
from concilia_auth.service import AuthService
from concilia_auth.settings import AuthSettings
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Audience, Session
from eth_account import Account
from eth_account.signers.local import LocalAccount

Sign = Callable[[LocalAccount, str], str]


@pytest.fixture
def session(service: AuthService, account: LocalAccount, sign: Sign) -> Session:
    challenge = service.challenge(account.address)
    return service.sign_in(challenge.message, sign(account, challenge.message))


def test_auth_challenge_says_what_is_signed(
    service: AuthService, account: LocalAccount, settings: AuthSettings, clock: Any
) -> None:
    challenge = service.challenge(account.address)
    message = eip4361.parse(challenge.message)
    assert (message.domain, message.uri, message.statement) == (settings.domain, settings.uri, settings.statement)
    assert (message.address, message.chain_id, message.nonce) == (account.address, 1337, challenge.nonce)
    assert challenge.expires_at == clock() + timedelta(seconds=300)
    assert service.challenge(account.address).nonce != challenge.nonce


def test_auth_sign_in_gives_a_session_with_the_roles_of_the_contract(
    service: AuthService, account: LocalAccount, sign: Sign, memory_roles: Any, clock: Any
) -> None:
    memory_roles.held[account.address] = frozenset({Role.HOSPITAL, Role.AUDITOR})
    challenge = service.challenge(account.address)
    session = service.sign_in(challenge.message, sign(account, challenge.message))
    assert (session.address, session.roles) == (account.address, (Role.AUDITOR, Role.HOSPITAL))
    assert session.expires_at == clock().replace(microsecond=0) + timedelta(hours=12)
    assert service.session(session.token).model_dump() == session.model_dump(exclude={"token"})


def test_auth_stranger_gets_a_session_and_token_without_roles(service: AuthService, session: Session) -> None:
    assert session.roles == ()
    assert service.access_token(session.token, Audience.CHAIN).roles == ()


def test_auth_nonce_works_once(service: AuthService, account: LocalAccount, sign: Sign) -> None:
    challenge = service.challenge(account.address)
    signature = sign(account, challenge.message)
    service.sign_in(challenge.message, signature)
    with pytest.raises(errors.NonceUnknown):
        service.sign_in(challenge.message, signature)


def test_auth_one_of_a_hundred_sign_ins_with_one_nonce_succeeds(
    service: AuthService, account: LocalAccount, sign: Sign
) -> None:
    challenge = service.challenge(account.address)
    signature = sign(account, challenge.message)
    together = threading.Barrier(100)

    def attempt(_: int) -> str:
        together.wait()
        try:
            return service.sign_in(challenge.message, signature).address
        except errors.NonceUnknown as error:
            return error.problem_code

    with ThreadPoolExecutor(100) as pool:
        outcomes = list(pool.map(attempt, range(100)))
    assert outcomes.count(account.address) == 1
    assert outcomes.count("nonce_unknown") == 99


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda text: text.replace("127.0.0.1:8000 wants", "evil.example wants"), errors.DomainMismatch),
        (lambda text: text.replace("URI: http://127.0.0.1:8000", "URI: http://evil.example"), errors.UriMismatch),
        (lambda text: text.replace("Chain ID: 1337", "Chain ID: 1"), errors.ChainMismatch),
        (lambda text: text.replace("Version: 1", "Version: 3"), errors.MessageMalformed),
        (lambda text: text.split("Expiration")[0] + "Expiration Time: 2020-01-01T00:00:00Z", errors.MessageExpired),
        (lambda text: text + " ", errors.MessageMalformed),
        (lambda text: text.replace("Sign in", "Sign out"), None),
    ],
)
def test_auth_failed_attempt_spends_the_nonce(
    service: AuthService,
    account: LocalAccount,
    sign: Sign,
    change: Callable[[str], str],
    error: type[Problem] | None,
) -> None:
    challenge = service.challenge(account.address)
    changed = change(challenge.message)
    assert changed != challenge.message
    # with no error of its own: what is shown is another statement than what was signed
    signature = sign(account, changed if error else challenge.message)
    with pytest.raises(error or errors.SignatureInvalid):
        service.sign_in(changed, signature)
    with pytest.raises(errors.NonceUnknown):
        service.sign_in(challenge.message, sign(account, challenge.message))


def test_auth_address_in_lower_case_is_refused(service: AuthService, sign: Sign) -> None:
    account: LocalAccount = Account.from_key("0x" + 63 * "0" + "1")
    challenge = service.challenge(account.address)
    changed = challenge.message.replace(account.address, account.address.lower())
    with pytest.raises(errors.MessageMalformed, match="EIP-55"):
        service.sign_in(changed, sign(account, changed))


def test_auth_nonce_of_another_address_is_refused(service: AuthService, account: LocalAccount, sign: Sign) -> None:
    thief: LocalAccount = Account.create()
    challenge = service.challenge(account.address)
    changed = challenge.message.replace(account.address, thief.address)
    with pytest.raises(errors.NonceUnknown):
        service.sign_in(changed, sign(thief, changed))


def test_auth_nonce_named_in_the_statement_does_not_count(
    service: AuthService, account: LocalAccount, sign: Sign, settings: AuthSettings
) -> None:
    live, spent = service.challenge(account.address), service.challenge(account.address)
    service.sign_in(spent.message, sign(account, spent.message))
    forged = spent.message.replace(settings.statement, f"Nonce: {live.nonce}")
    with pytest.raises(errors.NonceUnknown):
        service.sign_in(forged, sign(account, forged))


def test_auth_challenge_of_another_time_is_refused(
    service: AuthService, account: LocalAccount, sign: Sign, redis_connection: redis.Redis, clock: Any
) -> None:
    challenge = service.challenge(account.address)
    clock.forward(300)
    with pytest.raises(errors.MessageExpired):  # Redis's own clock did not move: the nonce still lives there
        service.sign_in(challenge.message, sign(account, challenge.message))
    forgotten = service.challenge(account.address)
    redis_connection.flushall()
    with pytest.raises(errors.NonceUnknown):
        service.sign_in(forgotten.message, sign(account, forgotten.message))


def test_auth_signed_out_session_is_unknown(service: AuthService, session: Session) -> None:
    service.sign_out(session.token)
    for work in (
        lambda: service.session(session.token),
        lambda: service.sign_out(session.token),
        lambda: service.access_token(session.token, Audience.MODEL),
    ):
        with pytest.raises(errors.SessionUnknown):
            work()


def test_auth_signing_out_ends_the_challenges_that_are_open(
    service: AuthService, session: Session, account: LocalAccount, sign: Sign
) -> None:
    stranger: LocalAccount = Account.create()
    signed_and_kept = service.challenge(account.address)
    of_another = service.challenge(stranger.address)
    service.sign_out(session.token)
    with pytest.raises(errors.NonceUnknown):
        service.sign_in(signed_and_kept.message, sign(account, signed_and_kept.message))
    assert service.sign_in(of_another.message, sign(stranger, of_another.message)).address == stranger.address
    again = service.challenge(account.address)
    assert service.sign_in(again.message, sign(account, again.message)).address == account.address


def test_auth_session_ends_when_it_is_not_used(
    service: AuthService, session: Session, settings: AuthSettings, redis_connection: redis.Redis
) -> None:
    (key,) = redis_connection.keys("concilia:auth:session:*")
    assert 0 < redis_connection.ttl(key) <= settings.idle_seconds
    redis_connection.pexpire(key, 1)
    while redis_connection.exists(key):
        pass
    for work in (
        lambda: service.session(session.token),
        lambda: service.access_token(session.token, Audience.MODEL),
    ):
        with pytest.raises(errors.SessionUnknown):
            work()


def test_auth_session_ends_at_its_time_however_much_it_is_used(
    service: AuthService, session: Session, clock: Any
) -> None:
    for _ in range(11):
        clock.forward(3600)
        service.session(session.token)
    clock.forward(3600)
    with pytest.raises(errors.SessionUnknown):
        service.session(session.token)


def test_auth_token_carries_the_roles_of_its_own_moment(
    service: AuthService, session: Session, account: LocalAccount, memory_roles: Any
) -> None:
    verifier = TokenVerifier(Audience.MODEL, service.published_keys)
    assert verifier.verify(service.access_token(session.token, Audience.MODEL).token).roles == frozenset()
    memory_roles.held[account.address] = frozenset({Role.CLINICIAN})
    issued = service.access_token(session.token, Audience.MODEL)
    caller = verifier.verify(issued.token)
    assert (caller.address, caller.roles, issued.roles) == (account.address, {Role.CLINICIAN}, (Role.CLINICIAN,))


def test_auth_token_says_what_it_must(service: AuthService, session: Session, clock: Any) -> None:
    issued = service.access_token(session.token, Audience.AGGREGATOR)
    header = jwt.get_unverified_header(issued.token)
    claims = jwt.decode(issued.token, options={"verify_signature": False})
    assert header["alg"] == "EdDSA"
    assert header["kid"] == service.published_keys()["keys"][-1]["kid"]
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("concilia-auth", session.address, "aggregator")
    assert claims["iat"] == int(clock().timestamp())
    assert claims["exp"] - claims["iat"] == 300
    assert claims["exp"] == issued.expires_at.timestamp()
    other = service.access_token(session.token, Audience.AGGREGATOR)
    assert jwt.decode(other.token, options={"verify_signature": False})["jti"] != claims["jti"]


def test_auth_token_does_not_outlive_its_session(service: AuthService, session: Session, clock: Any) -> None:
    clock.forward(12 * 3600 - 60)
    assert service.access_token(session.token, Audience.CHAIN).expires_at == session.expires_at


def test_auth_roles_unknown_means_no_session(
    service: AuthService,
    account: LocalAccount,
    sign: Sign,
    memory_roles: Any,
    monkeypatch: pytest.MonkeyPatch,
    redis_connection: redis.Redis,
) -> None:
    def lost(_address: str) -> frozenset[Role]:
        raise errors.ChainUnavailable("gone")

    challenge = service.challenge(account.address)
    monkeypatch.setattr(memory_roles, "of", lost)
    with pytest.raises(errors.ChainUnavailable):
        service.sign_in(challenge.message, sign(account, challenge.message))
    assert redis_connection.dbsize() == 0

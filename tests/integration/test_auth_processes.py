"""The auth service as real processes on a real Redis, and its clients in the kit: sign-in, tokens, offline proof."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import uvicorn
from concilia_auth import keys, tokens
from concilia_kit import http
from concilia_kit.http import WalletAuth, call
from concilia_kit.problems import Problem, Unauthorized
from concilia_kit.roles import Role
from concilia_kit.sessions import SessionsEnded
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Application, Audience, BrowserSession, FiledApplication, Session
from concilia_kit.wire.chain import AccountRoles, ContractInfo, Member
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI

pytestmark = pytest.mark.integration

HOSPITAL: LocalAccount = Account.from_key("0x" + 63 * "0" + "1")
ADMIN: LocalAccount = Account.from_key("0x" + 63 * "0" + "3")
ORIGIN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def chain_url(free_port: Callable[[], int]) -> Iterator[str]:
    """A chain service on which one address is a hospital and one an administrator."""
    app, port = FastAPI(), free_port()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/contract")
    def contract() -> ContractInfo:
        return ContractInfo(chain_id=1337, address="0x" + 40 * "1", deployment_block=1)

    @app.get("/v1/members/{address}")
    def member(address: str) -> Member:
        held = {HOSPITAL.address: (Role.HOSPITAL,), ADMIN.address: (Role.ADMIN,)}
        number = int(address == HOSPITAL.address)
        return Member(address=address, roles=held.get(address, ()), hospital_number=number, nonce=0)

    @app.get("/v1/members/{address}/roles")
    def account_roles(address: str) -> AccountRoles:
        held = {HOSPITAL.address: (Role.HOSPITAL,), ADMIN.address: (Role.ADMIN,)}
        return AccountRoles(address=address, roles=held.get(address, ()), block=1)

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def key_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("auth") / "keys"


@pytest.fixture(scope="module")
def replicas(
    chain_url: str, redis_server_url: str, key_directory: Path, free_port: Callable[[], int]
) -> Iterator[tuple[str, str]]:
    """Two replicas, started together."""
    environment = {
        **os.environ,
        "CONCILIA_AUTH_REDIS_URL": redis_server_url,
        "CONCILIA_AUTH_CHAIN_URL": chain_url,
        "CONCILIA_AUTH_DOMAIN": "127.0.0.1:8000",
        "CONCILIA_AUTH_URI": "http://127.0.0.1:8000",
        "CONCILIA_AUTH_KEY_DIRECTORY": str(key_directory),
    }
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as running:
        for port in ports:
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "concilia_auth"], env={**environment, "CONCILIA_AUTH_PORT": str(port)}
                )
            )
            running.callback(process.terminate)
        first, second = (f"http://127.0.0.1:{port}" for port in ports)
        for url in (first, second):
            with http.client(url) as client:
                call(client, "GET", "/readyz", retry_seconds=60)
        yield first, second


@pytest.fixture(scope="module")
def auth(replicas: tuple[str, str]) -> Iterator[httpx.Client]:
    with http.client(replicas[0]) as client:
        yield client


class CountedKeys:
    """Fetches the published keys, and counts how often."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.fetched = 0

    def __call__(self) -> dict[str, Any]:
        self.fetched += 1
        document: dict[str, Any] = call(self._client, "GET", "/.well-known/jwks.json").json()
        return document


@pytest.fixture
def published(auth: httpx.Client) -> CountedKeys:
    return CountedKeys(auth)


def minted(key: keys.SigningKey, age: float = 0, **changes: Any) -> str:
    issued_at = datetime.now(UTC) - timedelta(seconds=age)
    return tokens.mint(
        **{
            "key": key,
            "token_id": "1",
            "address": HOSPITAL.address,
            "roles": [Role.ADMIN],
            "audience": Audience.MODEL,
            "issued_at": issued_at,
            "expires_at": issued_at + timedelta(seconds=300),
            **changes,
        }
    )


def test_auth_wallet_signs_in_and_its_token_verifies_offline(auth: httpx.Client, published: CountedKeys) -> None:
    wallet = WalletAuth(auth, HOSPITAL, Audience.MODEL)
    verifier = TokenVerifier(Audience.MODEL, published)
    for token in (wallet.token(), wallet.token(), wallet.token(fresh=True)):
        caller = verifier.verify(token)
        assert (caller.address, caller.roles) == (HOSPITAL.address, {Role.HOSPITAL})
    assert wallet.token(fresh=True) != wallet.token(fresh=True)
    assert published.fetched == 1


def test_auth_stranger_has_no_roles(auth: httpx.Client, published: CountedKeys) -> None:
    stranger: LocalAccount = Account.create()
    caller = TokenVerifier(Audience.CHAIN, published).verify(WalletAuth(auth, stranger, Audience.CHAIN).token())
    assert (caller.address, caller.roles) == (stranger.address, frozenset())


def test_auth_wallet_signs_in_again_when_its_session_was_ended(auth: httpx.Client, published: CountedKeys) -> None:
    wallet = WalletAuth(auth, HOSPITAL, Audience.MODEL)
    wallet.token()
    assert wallet._session is not None
    call(auth, "DELETE", "/v1/sessions", headers={"Authorization": f"Bearer {wallet._session.token}"})
    TokenVerifier(Audience.MODEL, published).verify(wallet.token(fresh=True))


def test_auth_tokens_of_a_session_that_was_ended_are_refused_within_a_second(
    replicas: tuple[str, str], published: CountedKeys
) -> None:
    with http.client(replicas[0]) as first, http.client(replicas[1]) as second:
        wallets = [WalletAuth(first, HOSPITAL, audience) for audience in (Audience.MODEL, Audience.AUTH)]
        taken, mine = (wallet.token() for wallet in wallets)
        lost = wallets[0]._session
        assert lost is not None
        verifier = TokenVerifier(Audience.MODEL, published, ended=SessionsEnded(second))
        assert verifier.verify(taken).roles == {Role.HOSPITAL}
        bearer = {"Authorization": f"Bearer {mine}"}
        listed = {each["id"]: each["device"] for each in call(second, "GET", "/v1/sessions", headers=bearer).json()}
        id_ = hashlib.sha256(lost.token.encode()).hexdigest()
        assert listed[id_] == "python-httpx"
        call(first, "DELETE", f"/v1/sessions/{HOSPITAL.address}/{id_}", headers=bearer)
        time.sleep(1.1)
        with pytest.raises(Unauthorized) as refused:
            verifier.verify(taken)
        assert refused.value.problem_code == "session_ended"
        verifier.verify(wallets[0].token(fresh=True))


def test_auth_replicas_share_nonces_sessions_and_the_key(replicas: tuple[str, str], key_directory: Path) -> None:
    assert len(list(key_directory.glob("*.pem"))) == 1
    with http.client(replicas[0]) as first, http.client(replicas[1]) as second:
        documents = [CountedKeys(client)() for client in (first, second)]
        assert documents[0] == documents[1]
        asked = call(first, "POST", "/v1/challenges", json={"address": HOSPITAL.address}).json()
        signature = HOSPITAL.sign_message(encode_defunct(text=asked["message"])).signature.to_0x_hex()
        signed = {"message": asked["message"], "signature": signature}
        session = Session.model_validate_json(call(second, "POST", "/v1/sessions", json=signed).content)
        with pytest.raises(Problem) as refused:
            call(first, "POST", "/v1/sessions", json=signed)
        assert (refused.value.problem_status, refused.value.problem_code) == (401, "nonce_unknown")
        bearer = {"Authorization": f"Bearer {session.token}"}
        assert call(first, "GET", "/v1/session", headers=bearer).json()["roles"] == ["hospital"]


def test_auth_replicas_share_a_browsers_session(replicas: tuple[str, str], published: CountedKeys) -> None:
    with http.client(replicas[0]) as first, http.client(replicas[1]) as second:
        asked = call(first, "POST", "/v1/challenges", json={"address": HOSPITAL.address}).json()
        signature = HOSPITAL.sign_message(encode_defunct(text=asked["message"])).signature.to_0x_hex()
        signed = {"message": asked["message"], "signature": signature}
        answer = call(second, "POST", "/v1/browser-sessions", json=signed, headers={"Origin": ORIGIN})
        session = BrowserSession.model_validate_json(answer.content)
        # A Secure cookie does not travel over http in this client: by hand, as a browser's would behind a front door.
        cookie = {"Cookie": answer.headers["Set-Cookie"].split(";")[0], "Origin": ORIGIN}
        proven = {**cookie, "X-CSRF-Token": session.csrf_token}
        seen = call(first, "GET", "/v1/browser-session", headers=cookie)
        assert BrowserSession.model_validate_json(seen.content) == session
        token = call(first, "POST", "/v1/tokens", json={"audience": "model"}, headers=proven).json()["token"]
        assert TokenVerifier(Audience.MODEL, published).verify(token).roles == {Role.HOSPITAL}
        for client, headers, code in (
            (first, cookie, "csrf_token_invalid"),
            (first, {**proven, "Origin": "https://evil.example"}, "cross_site"),
        ):
            with pytest.raises(Problem) as refused:
                call(client, "DELETE", "/v1/browser-session", headers=headers)
            assert (refused.value.problem_status, refused.value.problem_code) == (403, code)
        call(second, "DELETE", "/v1/browser-session", headers=proven)
        with pytest.raises(Problem) as ended:
            call(first, "GET", "/v1/browser-session", headers=cookie)
        assert (ended.value.problem_status, ended.value.problem_code) == (401, "session_unknown")


def test_auth_application_reaches_an_administrator_through_any_replica(
    auth: httpx.Client, replicas: tuple[str, str]
) -> None:
    stranger: LocalAccount = Account.create()
    asked = Application(role=Role.HOSPITAL, name="St. Anna", note="HAM10000: 10 images.")
    with (
        http.client(replicas[0], WalletAuth(auth, stranger, Audience.AUTH)) as applicant,
        http.client(replicas[1], WalletAuth(auth, ADMIN, Audience.AUTH)) as administrator,
    ):
        answer = call(applicant, "POST", "/v1/applications", json=asked.model_dump(mode="json"))
        filed = FiledApplication.model_validate_json(answer.content)
        assert filed.model_dump(exclude={"address", "filed_at"}) == asked.model_dump()
        listed = call(administrator, "GET", "/v1/applications").json()
        assert listed == [filed.model_dump(mode="json")]
        with pytest.raises(Problem) as refused:
            call(applicant, "GET", "/v1/applications")
        assert refused.value.problem_code == "role_missing"
        call(administrator, "DELETE", f"/v1/applications/{stranger.address}")
        assert call(administrator, "GET", "/v1/applications").json() == []


def test_auth_verifier_refuses_what_it_must(
    auth: httpx.Client, published: CountedKeys, key_directory: Path, tmp_path: Path
) -> None:
    key = keys.read(key_directory).signing
    keys.create(tmp_path, key.id)
    impostor = keys.read(tmp_path).signing
    claims = jwt.decode(minted(key), options={"verify_signature": False})
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": key.id})
    public = key.private.public_key()
    header, payload = (part.encode() for part in minted(key).split(".")[:2])
    verifier = TokenVerifier(Audience.MODEL, published)
    assert verifier.verify(minted(key)).roles == {Role.ADMIN}  # the way in is right, so what follows is the reason
    for token, code in (
        (WalletAuth(auth, HOSPITAL, Audience.AGGREGATOR).token(), "token_invalid"),
        (minted(key, age=301), "token_expired"),
        (minted(impostor), "token_invalid"),
        (unsigned, "token_invalid"),
        (hs256(claims, key.id, public.public_bytes(Encoding.Raw, PublicFormat.Raw)), "token_invalid"),
        (hs256(claims, key.id, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)), "token_invalid"),
        ((header + b"." + payload + b".").decode(), "token_invalid"),
        ("not.a.token", "token_invalid"),
        ("", "token_invalid"),
    ):
        with pytest.raises(Unauthorized) as refused:
            verifier.verify(token)
        assert refused.value.problem_code == code
    assert published.fetched == 1


def hs256(claims: dict[str, Any], key_id: str, secret: bytes) -> str:
    """A token signed with the public key as if it were a shared secret; by hand, as PyJWT refuses to."""

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    signed = b".".join(part(json.dumps(it).encode()) for it in ({"alg": "HS256", "typ": "JWT", "kid": key_id}, claims))
    return (signed + b"." + part(hmac.digest(secret, signed, hashlib.sha256))).decode()


def test_auth_unknown_key_id_does_not_hammer_auth(published: CountedKeys, key_directory: Path, tmp_path: Path) -> None:
    keys.create(tmp_path, "unheard-of")
    foreign = minted(keys.read(tmp_path).signing)
    verifier = TokenVerifier(Audience.MODEL, published, refetch_seconds=3600)
    for _ in range(20):
        with pytest.raises(Unauthorized):
            verifier.verify(foreign)
    assert published.fetched == 1
    verifier.verify(minted(keys.read(key_directory).signing))
    assert published.fetched == 1


def test_auth_key_added_while_running_signs_and_is_found(
    auth: httpx.Client, published: CountedKeys, key_directory: Path
) -> None:
    verifier = TokenVerifier(Audience.MODEL, published, refetch_seconds=0)
    before = WalletAuth(auth, HOSPITAL, Audience.MODEL).token()
    verifier.verify(before)
    keys.create(key_directory, "9999-rotated")
    wallet = WalletAuth(auth, HOSPITAL, Audience.MODEL)
    while jwt.get_unverified_header(after := wallet.token(fresh=True))["kid"] != "9999-rotated":
        verifier.verify(after)
        time.sleep(0.2)
    (key_directory / "9999-rotated.pem").rename(key_directory.parent / "9999-rotated.pem")
    assert jwt.get_unverified_header(after)["kid"] == "9999-rotated"
    with pytest.raises(Unauthorized):  # published no more
        verifier.verify(after)
    (key_directory.parent / "9999-rotated.pem").rename(key_directory / "9999-rotated.pem")
    for token in (before, after):
        assert verifier.verify(token).address == HOSPITAL.address


@contextlib.contextmanager
def limited(
    redis_server_url: str, chain_url: str, key_directory: Path, port: int, **environment: str
) -> Iterator[httpx.Client]:
    """A client of an auth service with settings of its own, as a process."""
    given = {
        **os.environ,
        "CONCILIA_AUTH_PORT": str(port),
        "CONCILIA_AUTH_REDIS_URL": redis_server_url,
        "CONCILIA_AUTH_CHAIN_URL": chain_url,
        "CONCILIA_AUTH_DOMAIN": "127.0.0.1:8000",
        "CONCILIA_AUTH_URI": "http://127.0.0.1:8000",
        "CONCILIA_AUTH_KEY_DIRECTORY": str(key_directory),
        **environment,
    }
    with (
        subprocess.Popen([sys.executable, "-m", "concilia_auth"], env=given) as process,
        http.client(f"http://127.0.0.1:{port}") as client,
    ):
        try:
            call(client, "GET", "/readyz", retry_seconds=60)
            yield client
        finally:
            process.terminate()


def challenged(client: httpx.Client, source: str, times: int) -> list[int]:
    """Statuses of challenges for as many addresses, from a peer that says whom it asks for."""
    named = {"X-Forwarded-For": source}
    return [
        client.post("/v1/challenges", json={"address": Account.create().address}, headers=named).status_code
        for _ in range(times)
    ]


def test_auth_counts_by_the_source_that_a_trusted_proxy_names(
    redis_server_url: str, chain_url: str, key_directory: Path, free_port: Callable[[], int]
) -> None:
    settings = {"CONCILIA_AUTH_SOURCE_RATE": "3"}
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(limited(redis_server_url, chain_url, key_directory, free_port(), **settings))
            for _ in range(2)
        )
        assert challenged(first, "192.0.2.7", 2) == [200, 200]
        assert challenged(second, "192.0.2.7", 2) == [200, 429]  # replicas count together
        # What the caller wrote stands before what the proxy adds, and does not count.
        assert challenged(first, "198.51.100.1, 192.0.2.7", 1) == [429]
        assert challenged(first, "192.0.2.8", 1) == [200]


def test_auth_does_not_read_what_others_name(
    redis_server_url: str, chain_url: str, key_directory: Path, free_port: Callable[[], int]
) -> None:
    settings = {"CONCILIA_AUTH_SOURCE_RATE": "3", "CONCILIA_AUTH_TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.1"}
    with limited(redis_server_url, chain_url, key_directory, free_port(), **settings) as client:
        told = [challenged(client, f"198.51.100.{number}", 1) for number in range(5)]
        assert told == [[200], [200], [200], [429], [429]]  # all are this machine


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"CONCILIA_AUTH_PORT": "none"}, "CONCILIA_AUTH_PORT"),
        ({"CONCILIA_AUTH_REDIS_URL": "localhost"}, "CONCILIA_AUTH_REDIS_URL"),
        ({"CONCILIA_AUTH_STATEMENT": "two\nlines"}, "EIP-4361"),
        ({"CONCILIA_AUTH_URI": "http://127.0.0.1:99999"}, "'http://127.0.0.1:99999' cannot be one"),
        (
            {"CONCILIA_AUTH_TRUSTED_PROXIES": "frontend"},
            "CONCILIA_AUTH_TRUSTED_PROXIES: Value error, 'frontend' does not",
        ),
        ({"CONCILIA_AUTH_SOURCE_RATE": "-1"}, "CONCILIA_AUTH_SOURCE_RATE"),
        ({"CONCILIA_AUTH_KEY_DIRECTORY": "/dev/null/keys"}, "/dev/null/keys cannot hold signing keys"),
    ],
)
def test_auth_refused_settings_are_one_line_and_status_2(tmp_path: Path, change: dict[str, str], said: str) -> None:
    environment = {
        **os.environ,
        "CONCILIA_AUTH_PORT": "8001",
        "CONCILIA_AUTH_REDIS_URL": "redis://127.0.0.1:1/0",
        "CONCILIA_AUTH_CHAIN_URL": "http://127.0.0.1:1",
        "CONCILIA_AUTH_DOMAIN": "127.0.0.1:8000",
        "CONCILIA_AUTH_URI": "http://127.0.0.1:8000",
        "CONCILIA_AUTH_KEY_DIRECTORY": str(tmp_path),
        **change,
    }
    ended = subprocess.run([sys.executable, "-m", "concilia_auth"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert said in line

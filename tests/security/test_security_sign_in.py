"""An accepted sign-in sent again ten thousand times, one nonce used by a hundred at once, keys that change under way:
real processes, real HTTP, a real Redis."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from concilia_auth import keys
from concilia_kit import http
from concilia_kit.http import call
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from eth_account import Account

from . import sign_in_world

REPLAYS = 10_000
AT_ONCE = 100
CONNECTIONS = 8
VERIFIED = 100  # tokens a phase, by each verifier
PATIENCE = 60.0  # seconds

Tell = Callable[[str], None]


@pytest.fixture(scope="module")
def key_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("auth") / "keys"


@pytest.fixture(scope="module")
def replicas(redis_server_url: str, key_directory: Path, free_port: Callable[[], int]) -> Iterator[tuple[str, ...]]:
    """Two auth services that share a Redis and their keys; nobody is too fast for them."""
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(sign_in_world.chain_service(free_port()))
        yield tuple(
            stack.enter_context(
                sign_in_world.auth_service(
                    free_port(), redis_server_url, chain, key_directory, **sign_in_world.UNLIMITED
                )
            )
            for _ in range(2)
        )


def outcome(connection: HTTPConnection, path: str, body: bytes) -> str:
    """'201', or the status with the problem's code."""
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    document = json.loads(answer.read())
    return f"{answer.status} {document['code']}" if answer.status >= 400 else str(answer.status)


def connect(url: str) -> HTTPConnection:
    place = urlsplit(url)
    assert place.hostname is not None
    return HTTPConnection(place.hostname, place.port, timeout=PATIENCE)


def test_ten_thousand_replays_of_an_accepted_sign_in(replicas: tuple[str, ...], tell: Tell) -> None:
    with http.client(replicas[0]) as client:
        signed = sign_in_world.signed_challenge(client, Account.create())
        assert call(client, "POST", "/v1/sessions", json=signed).status_code == 201
    body = json.dumps(signed).encode()

    def replay(number: int) -> Counter[str]:
        path = ("/v1/sessions", "/v1/browser-sessions")[number % 2]
        with contextlib.closing(connect(replicas[number // 2 % 2])) as connection:
            return Counter(outcome(connection, path, body) for _ in range(REPLAYS // CONNECTIONS))

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        told: Counter[str] = sum(pool.map(replay, range(CONNECTIONS)), Counter())
    accepted = sum(count for what, count in told.items() if not what.startswith("4"))
    tell(f"sign-in: {REPLAYS:,} replays of an accepted one, accepted {accepted}")
    assert told == {"401 nonce_unknown": REPLAYS}
    assert accepted == 0


def test_one_nonce_used_by_a_hundred_at_once(replicas: tuple[str, ...], tell: Tell) -> None:
    with http.client(replicas[0]) as client:
        body = json.dumps(sign_in_world.signed_challenge(client, Account.create())).encode()
    together = threading.Barrier(AT_ONCE)

    def attempt(number: int) -> str:
        with contextlib.closing(connect(replicas[number % 2])) as connection:
            connection.connect()
            together.wait(PATIENCE)
            return outcome(connection, "/v1/sessions", body)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = Counter(pool.map(attempt, range(AT_ONCE)))
    tell(f"sign-in: one nonce used by {AT_ONCE} at once, accepted {told['201']}")
    assert told == {"201": 1, "401 nonce_unknown": AT_ONCE - 1}


class Verifier:
    """A process that takes tokens from one replica and verifies them with the keys of the other, until told to stop."""

    def __init__(self, source: str, keys_url: str, session: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("verifying.py")), source, keys_url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._say(session)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def count(self) -> dict[str, int]:
        """How many were verified so far, by key, and how many failed."""
        assert self._process.stdout is not None
        self._say("count")
        told: dict[str, int] = json.loads(self._process.stdout.readline())
        return told

    def stop(self) -> None:
        self._process.communicate("stop\n", timeout=PATIENCE)
        assert self._process.returncode == 0


def until_all(verifiers: list[Verifier], key_id: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(each.count().get(key_id, 0) < count for each in verifiers):
        assert time.monotonic() < deadline, [each.count() for each in verifiers]
        time.sleep(0.1)


def test_keys_change_and_no_request_fails(replicas: tuple[str, ...], key_directory: Path, tell: Tell) -> None:
    """Two processes verify tokens all the while, and are shown forged key ids, so that they always asked just now."""
    (old,) = (path.stem for path in key_directory.glob("*.pem"))
    with http.client(replicas[0]) as client:
        signed = sign_in_world.signed_challenge(client, Account.create())
        session = call(client, "POST", "/v1/sessions", json=signed).json()["token"]
    verifiers = [Verifier(replicas[number], replicas[1 - number], session) for number in range(2)]
    try:
        until_all(verifiers, old, VERIFIED)
        keys.create(key_directory, "9999-next")
        until_all(verifiers, "9999-next", VERIFIED)
        retire(key_directory / f"{old}.pem")
        before = verifiers[0].count()["9999-next"]
        until_all(verifiers, "9999-next", before + VERIFIED)
        told = [each.count() for each in verifiers]
    finally:
        for each in verifiers:
            each.stop()
    failed = sum(each["failed"] for each in told)
    forged = sum(each["forged"] for each in told)
    verified = sum(each[old] + each["9999-next"] for each in told)
    tell(f"keys: changed under {verified:,} verified tokens and {forged:,} forged key ids; failed {failed}")
    assert failed == 0
    assert all(each["forged"] > 0 and each["taken"] == 0 for each in told)


def retire(path: Path) -> None:
    """Leave a key's public half only, moved in whole."""
    public = load_pem_private_key(path.read_bytes(), None).public_key()
    half = path.with_name(".half")
    half.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    half.rename(path)

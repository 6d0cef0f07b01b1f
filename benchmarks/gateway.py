"""The chain service as a process of its own on a node, and hospitals that post their updates to it at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
from concilia.stack import redis_server
from concilia_kit.roles import Role
from concilia_kit.tokens import ALGORITHM, ISSUER
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.chain import UpdateSubmission
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account

from benchmarks.cohort import METRICS, Ledger, Sample, Signed, gas_of
from benchmarks.nodes import free_port

CLIENTS = 100
"""Hospitals that wait for an answer at the same time."""
_START_SECONDS = 300.0
_ANSWER_SECONDS = 300.0


class Gateway:
    """The service's REST, as hospitals and the coordinator use it."""

    def __init__(self, ledger: Ledger, url: str, issuer: Issuer, coordinator: str) -> None:
        self._ledger = ledger
        self._url = url
        self._issuer = issuer
        self._coordinator = coordinator

    def await_followed(self) -> None:
        """Wait until the service has read every event so far. Raises `RuntimeError` where it does not."""
        head = int(self._ledger.node.ask("eth_blockNumber"), 16)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            answer = httpx.get(f"{self._url}/v1/members/{self._coordinator}/roles", timeout=30)
            if answer.status_code == 200 and answer.json()["block"] >= head:
                return
            time.sleep(0.2)
        raise RuntimeError("the chain service does not come to the newest block")

    def recorded(self, count: int) -> Sample:
        """`POST /v1/updates` by so many hospitals; the service makes batches of what comes together."""
        job, opening = self._ledger.open_round("openRound")
        updates, signing_seconds = self._ledger.sign(job, count)
        self.await_followed()
        began = time.perf_counter()
        receipts = asyncio.run(self._post(updates, 201))
        seconds = time.perf_counter() - began
        return self._sample({each["transaction"] for each in receipts}, seconds, signing_seconds, opening)

    def committed(self, count: int) -> Sample:
        """The same in a Merkle round, and the coordinator's call that commits what came."""
        job, opening = self._ledger.open_round("openMerkleRound")
        updates, signing_seconds = self._ledger.sign(job, count)
        self.await_followed()
        began = time.perf_counter()
        asyncio.run(self._post(updates, 202))
        answer = httpx.post(
            f"{self._url}/v1/rounds/{job.hex()}/1/commitment",
            headers=self._issuer.headers(self._coordinator, Role.COORDINATOR),
            timeout=_ANSWER_SECONDS,
        )
        seconds = time.perf_counter() - began
        return self._sample({_checked(answer, 201)["transaction"]}, seconds, signing_seconds, opening)

    def _sample(self, transactions: set[str], seconds: float, signing_seconds: float, opening: int) -> Sample:
        receipts = self._ledger.node.receipts(sorted(transactions))
        return Sample(len(receipts), sum(map(gas_of, receipts)), seconds, signing_seconds, opening)

    async def _post(self, updates: Sequence[Signed], status: int) -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        clients = asyncio.Semaphore(CLIENTS)
        async with httpx.AsyncClient(base_url=self._url, timeout=_ANSWER_SECONDS, limits=limits) as http:

            async def post(each: Signed) -> dict[str, Any]:
                order = UpdateSubmission(update=each.update, metrics=METRICS, signature=each.signature)
                async with clients:
                    headers = self._issuer.headers(each.update.hospital, Role.HOSPITAL)
                    return await _answered(http, order.model_dump(mode="json"), headers, status)

            return list(await asyncio.gather(*map(post, updates)))


async def _answered(http: httpx.AsyncClient, body: Any, headers: dict[str, str], status: int) -> dict[str, Any]:
    """The answer to an update, asked for again where the connection broke or the service was busy, as hospitals do."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = await http.post("/v1/updates", json=body, headers=headers)
            if answer.status_code not in (503, 504):
                return _checked(answer, status, 200)
        if time.monotonic() > deadline:
            raise RuntimeError(f"the gateway leaves an update unanswered for {_ANSWER_SECONDS:.0f} s")
        await asyncio.sleep(0.2)


class Issuer:
    """Stands where the auth service does: signs access tokens and publishes its key."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._key = Ed25519PrivateKey.generate()
        entry = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self._key.public_key()))
        body = json.dumps({"keys": [{**entry, "kid": "one", "alg": ALGORITHM}]}).encode()

        class Keys(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Keys)
        threading.Thread(target=self.server.serve_forever, name="keys", daemon=True).start()

    def headers(self, address: str, role: Role) -> dict[str, str]:
        """A fresh access token of somebody, as a header."""
        now = int(time.time())
        claims = {"sub": address, "aud": Audience.CHAIN, "iss": ISSUER, "iat": now, "exp": now + 300, "roles": [role]}
        token = jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": "one"})
        return {"Authorization": f"Bearer {token}"}


@contextlib.contextmanager
def running(ledger: Ledger) -> Iterator[Gateway]:
    """A chain service attached to a ledger; gone afterwards. Raises `RuntimeError` where it does not start."""
    relay = Account.create()
    ledger.admit(relay.address, Role.COORDINATOR)
    with contextlib.ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        issuer = Issuer(free_port())
        ending.callback(issuer.server.server_close)
        ending.callback(issuer.server.shutdown)
        redis_port, port = free_port(), free_port()
        (folder / "redis").mkdir()
        _process(ending, redis_server.command(redis_port, folder / "redis"), {}, folder / "redis.log")
        (folder / "password").write_text("secret")
        # One iteration: opening a key is not what is measured.
        key = Account.encrypt(relay.key, "secret", kdf="pbkdf2", iterations=1)
        (folder / "keystore.json").write_text(json.dumps(key))
        settings = {
            "RPC_URL": ledger.node.url,
            "CONTRACT_ADDRESS": ledger.address,
            "KEYSTORE": str(folder / "keystore.json"),
            "PASSWORD_FILE": str(folder / "password"),
            "DATABASE_URL": f"sqlite:///{folder / 'chain.db'}",
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "AUTH_URL": issuer.url,
            "PORT": str(port),
            "LOG_LEVEL": "WARNING",
        }
        environment = {f"CONCILIA_CHAIN_{name}": value for name, value in settings.items()}
        log = folder / "chain.log"
        process = _process(ending, [sys.executable, "-m", "concilia_chain"], environment, log)
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, log)
        try:
            yield Gateway(ledger, url, issuer, relay.address)
        except Exception:
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            raise


def _process(
    ending: contextlib.ExitStack, command: Sequence[str], environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    said = ending.enter_context(log.open("wb"))
    process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **environment})
    ending.callback(process.wait, 30)
    ending.callback(process.terminate)
    return process


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the chain service did not start: {log.read_text(errors='replace')[-1000:]}")


def _checked(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    if answer.status_code not in statuses:
        raise RuntimeError(f"the gateway answers {answer.status_code}: {answer.text[:300]}")
    document: dict[str, Any] = answer.json()
    return document

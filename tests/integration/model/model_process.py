"""The model service as a process of its own, and the auth and chain services reduced to what it asks of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
from concilia_kit import tensorfile, web
from concilia_kit.problems import Forbidden, NotFound
from concilia_kit.roles import Role
from concilia_kit.sealing import Keyring
from concilia_kit.tokens import ISSUER, TokenVerifier
from concilia_kit.wire.auth import AccessToken, Audience, Challenge, ChallengeRequest, Session, SignIn, TokenRequest
from concilia_kit.wire.chain import EventPage, LedgerJob, RecordedEvent, Roll
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from eth_account.messages import encode_defunct
from fastapi import Depends
from fastapi.security import HTTPBearer

_bearer = Depends(HTTPBearer())
_any_role = Depends(web.require())


class Peers:
    """Signs in whoever signs the challenge, as an auditor; publishes its key; tells jobs, events, and roles."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.jobs: dict[str, LedgerJob] = {}
        self.events: list[RecordedEvent] = []
        self.readers: list[str] = []
        self.roles: dict[str, set[Role]] = {}
        app = web.application("peers", ready={}, verifier=TokenVerifier(Audience.CHAIN, self.jwks))
        soon = datetime.now(UTC) + timedelta(hours=1)

        @app.get("/.well-known/jwks.json")
        def jwks() -> dict[str, Any]:
            return self.jwks()

        @app.post("/v1/challenges")
        def challenge(asked: ChallengeRequest) -> Challenge:
            return Challenge(message=f"sign in: {asked.address}", nonce="n" * 8, expires_at=soon)

        @app.post("/v1/sessions")
        def session(asked: SignIn) -> Session:
            address = str(Account.recover_message(encode_defunct(text=asked.message), signature=asked.signature))
            if not asked.message.endswith(address):
                raise Forbidden("signed by another key")
            return Session(token=address, address=address, roles=(Role.AUDITOR,), expires_at=soon)

        @app.post("/v1/tokens")
        def token(asked: TokenRequest, caller: Any = _bearer) -> AccessToken:
            made = self.token(caller.credentials, Role.AUDITOR, audience=asked.audience.value)
            return AccessToken(token=made, audience=asked.audience, roles=(Role.AUDITOR,), expires_at=soon)

        @app.get("/v1/jobs/{job}")
        def job(job: str, caller: Any = _any_role) -> LedgerJob:
            self.readers.append(caller.address)
            if job not in self.jobs:
                raise NotFound("no such job")
            return self.jobs[job]

        @app.get("/v1/events", dependencies=[_any_role])
        def events() -> EventPage:
            return EventPage(events=tuple(self.events[::-1]), before=None)

        @app.get("/v1/roles")
        def roles() -> Roll:
            return Roll(roles={address: tuple(sorted(held)) for address, held in self.roles.items()})

        self.app = app

    def jwks(self) -> dict[str, Any]:
        public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self.key.public_key()))
        return {"keys": [{**public, "kid": "1", "alg": "EdDSA"}]}

    def token(self, address: str, *roles: Role, audience: str = "model") -> str:
        self.roles.setdefault(address, set()).update(roles)
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": audience, "sub": address, "iat": now, "exp": now + 600}
        return jwt.encode({**claims, "roles": [*roles]}, self.key, "EdDSA", headers={"kid": "1"})

    def headers(self, address: str, *roles: Role) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(address, *roles)}"}


class Running:
    """A started service process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.port = int(environment["CONCILIA_MODEL_PORT"])
        self.directory = Path(environment["CONCILIA_MODEL_DIRECTORY"])
        self.keys = Keyring.read(environment["CONCILIA_MODEL_SEALING_KEY_FILE"])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "concilia_model"], env=environment, stderr=subprocess.PIPE, text=True
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        end = time.monotonic() + 120
        while True:
            try:
                self.http.get("/healthz")
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.process.communicate()[1]
                assert time.monotonic() < end
                time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.stop()

    def stop(self) -> str:
        self.http.close()
        self.process.terminate()
        return str(self.process.communicate(timeout=30)[1])

    def files(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file()]


def tensor_file(megabytes: int, seed: int = 0) -> tuple[str, bytes]:
    array = np.random.default_rng(seed).random(megabytes * 2**18, np.float32)
    header, _ = tensorfile.layout({"w": tensorfile.TensorSpec(array.dtype, array.shape)})
    content = header + array.tobytes()
    return hashlib.sha256(content).hexdigest(), content

"""The model service as a process of its own, on sockets, beside an auth and a chain service reduced to what it asks."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
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
import numpy as np
import pytest
import uvicorn
from concilia_kit import keystore, tensorfile, web
from concilia_kit.problems import Forbidden, NotFound
from concilia_kit.roles import Role
from concilia_kit.signing import Update
from concilia_kit.tokens import ISSUER, TokenVerifier
from concilia_kit.wire.auth import AccessToken, Audience, Challenge, ChallengeRequest, Session, SignIn, TokenRequest
from concilia_kit.wire.chain import AccountRoles, LedgerJob, LedgerRound, LedgerUpdate, RoundStatus
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from eth_account.messages import encode_defunct
from fastapi import Depends
from fastapi.security import HTTPBearer
from PIL import Image

pytestmark = pytest.mark.integration

ALICE, CAROL = "0x" + "1" * 40, "0x" + "2" * 40
JOB = "7" * 64

_bearer = Depends(HTTPBearer())
_any_role = Depends(web.require())


class Peers:
    """Signs in whoever signs the challenge, as an auditor; publishes its key; tells one job, and roles."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.jobs: dict[str, LedgerJob] = {}
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

        @app.get("/v1/members/{address}/roles")
        def roles(address: str) -> AccountRoles:
            return AccountRoles(address=address, roles=tuple(sorted(self.roles.get(address, ()))), block=1)

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


@pytest.fixture(scope="module")
def peers(free_port: Callable[[], int]) -> Iterator[tuple[Peers, str]]:
    made, port = Peers(), free_port()
    server = uvicorn.Server(uvicorn.Config(made.app, port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield made, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("key")
    account = keystore.create(folder / "key.json", folder / "password")
    return folder / "key.json", folder / "password", account.address


@pytest.fixture
def environment(
    tmp_path: Path, peers: tuple[Peers, str], key: tuple[Path, Path, str], free_port: Callable[[], int]
) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")},
        "CONCILIA_MODEL_PORT": str(free_port()),
        "CONCILIA_MODEL_DIRECTORY": str(tmp_path / "artifacts"),
        "CONCILIA_MODEL_DATABASE_URL": f"sqlite:///{tmp_path / 'model.db'}",
        "CONCILIA_MODEL_AUTH_URL": peers[1],
        "CONCILIA_MODEL_CHAIN_URL": peers[1],
        "CONCILIA_MODEL_KEYSTORE": str(key[0]),
        "CONCILIA_MODEL_PASSWORD_FILE": str(key[1]),
        "CONCILIA_MODEL_RESERVE_BYTES": "0",
        "CONCILIA_MODEL_THREADS": "1",
    }


class Running:
    """A started service process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.port = int(environment["CONCILIA_MODEL_PORT"])
        self.directory = Path(environment["CONCILIA_MODEL_DIRECTORY"])
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


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[[], Running]]:
    running: list[Running] = []

    def begin() -> Running:
        running.append(Running(environment))
        return running[-1]

    yield begin
    for service in running:
        if service.process.poll() is None:
            service.stop()


def _file(megabytes: int) -> tuple[str, bytes]:
    array = np.random.default_rng(0).random(megabytes * 2**18, np.float32)
    header, _ = tensorfile.layout({"w": tensorfile.TensorSpec(array.dtype, array.shape)})
    content = header + array.tobytes()
    return hashlib.sha256(content).hexdigest(), content


def _published(digest: str) -> LedgerJob:
    update = Update(hospital=ALICE, job=JOB, round=1, base=digest, digest="c" * 64, samples=1, metrics="d" * 64)
    recorded = LedgerUpdate(
        update=update, signature="0x11", metrics=None, reason=None, transaction="0x" + "2" * 64, block=1
    )
    closed = LedgerRound(
        job=JOB,
        round=1,
        status=RoundStatus.CLOSED,
        base=digest,
        deadline=1,
        quorum=1,
        submitted=1,
        rejected=0,
        global_digest=digest,
        contributions="e" * 64,
        updates=(recorded,),
    )
    return LedgerJob(job=JOB, head=digest, published=True, rounds=(closed,))


def test_from_upload_to_prediction(
    start: Callable[[], Running], peers: tuple[Peers, str], key: tuple[Path, Path, str]
) -> None:
    told, _ = peers
    service = start()
    hospital = told.headers(ALICE, Role.HOSPITAL)
    coordinator = told.headers(CAROL, Role.COORDINATOR)
    ready = service.http.get("/readyz")
    assert ready.json() == {"database": "ok", "disk": "ok", "auth": "ok", "chain": "ok"}

    digest, content = _file(24)
    sent = service.http.put(f"/v1/artifacts/{digest}", content=io.BytesIO(content), headers=hospital)
    assert sent.status_code == 201, sent.text
    assert service.http.get(f"/v1/artifacts/{digest}", headers=hospital).content == content
    rest = service.http.get(f"/v1/artifacts/{digest}", headers={**hospital, "Range": "bytes=9000000-"})
    assert (rest.status_code, rest.content) == (206, content[9_000_000:])
    # Answered before the body is read; the connection goes on to work.
    again = service.http.put(f"/v1/artifacts/{digest}", content=io.BytesIO(content), headers=hospital)
    assert again.status_code == 200
    wrong = service.http.put(f"/v1/artifacts/{'0' * 64}", content=content, headers=hospital)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "digest_mismatch")

    asked = {"architecture": "mobilenet_v2", "weights": "random"}
    made = service.http.post("/v1/initial-models", json=asked, headers=coordinator).json()
    told.jobs[JOB] = _published(made["digest"])
    registration = {"job": JOB, "digest": made["digest"], "architecture": "mobilenet_v2", "image_size": 64}
    registered = service.http.post("/v1/models", json=registration, headers=coordinator)
    assert registered.status_code == 201, registered.text
    assert told.readers == [key[2]]  # the service asked the chain in its own name
    picture = io.BytesIO()
    Image.new("RGB", (600, 450), (200, 150, 120)).save(picture, "JPEG")
    clinician = told.headers(ALICE, Role.CLINICIAN)
    sent = {"files": {"image": ("lesion-of-anna.jpg", picture.getvalue())}, "headers": clinician}
    answer = service.http.post("/v1/predictions", params={"attention": "true"}, **sent).json()
    assert answer["model"] == made["digest"]
    assert len(answer["attention"]) == len(answer["probabilities"]) == 7
    assert service.http.post("/v1/predictions", **sent).json()["probabilities"] == answer["probabilities"]
    told.roles[ALICE].clear()  # taken on the ledger: the token is still good, the role is gone
    while (refused := service.http.post("/v1/predictions", **sent)).status_code == 200:
        time.sleep(0.05)
    assert (refused.status_code, refused.json()["code"]) == (403, "role_missing")
    assert sum(item["probability"] for item in answer["probabilities"]) == pytest.approx(1, abs=1e-9)
    assert len(service.files()) == 2
    log = service.stop()
    assert service.process.returncode in (0, -15)
    assert "Traceback" not in log
    assert "anna" not in log


def test_a_process_killed_in_the_middle_of_an_upload(start: Callable[[], Running], peers: tuple[Peers, str]) -> None:
    service = start()
    headers = peers[0].headers(ALICE, Role.HOSPITAL)
    digest, content = _file(8)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            f"PUT /v1/artifacts/{digest} HTTP/1.1\r\nHost: model\r\nContent-Length: {len(content)}\r\n"
            f"Authorization: {headers['Authorization']}\r\n\r\n".encode()
            + content[: 6 * 2**20]
        )
        while not any(path.stat().st_size > 2**20 for path in service.files()):
            time.sleep(0.02)
            assert service.process.poll() is None
        service.kill()
    assert not (service.directory / digest[:2] / digest).exists()
    service = start()
    assert service.http.get(f"/v1/artifacts/{digest}", headers=headers).status_code == 404
    assert service.http.put(f"/v1/artifacts/{digest}", content=content, headers=headers).status_code == 201
    assert service.http.get(f"/v1/artifacts/{digest}", headers=headers).content == content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"CONCILIA_MODEL_PORT": "0"}, "CONCILIA_MODEL_PORT"),
        ({"CONCILIA_MODEL_KEYSTORE": "/nonexistent/key.json"}, "/nonexistent/key.json is missing"),
        ({"CONCILIA_MODEL_DATABASE_URL": "nonsense"}, "CONCILIA_MODEL_DATABASE_URL"),
        ({"CONCILIA_MODEL_DATABASE_URL": "sqlite:////nonexistent/model.db"}, "CONCILIA_MODEL_DATABASE_URL"),
        ({"CONCILIA_MODEL_DIRECTORY": "/dev/null/artifacts"}, "/dev/null/artifacts"),
    ],
)
def test_settings_that_do_not_do(environment: dict[str, str], change: dict[str, str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "concilia_model"],
        env={**environment, **change},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]  # Alembic logs as JSON
    assert len(lines) == 1
    assert said in lines[0]

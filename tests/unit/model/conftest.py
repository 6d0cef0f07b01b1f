"""The model service on a real disk and a real SQLite file, with a ledger that lives in memory."""

from __future__ import annotations

import hashlib
import json
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import pytest
from asgi_lifespan import LifespanManager
from concilia_kit import database, tensorfile
from concilia_kit.problems import NotFound, Unavailable
from concilia_kit.roles import Role
from concilia_kit.sealing import Keyring
from concilia_kit.signing import Update
from concilia_kit.storedfile import StoredFile
from concilia_kit.tokens import ISSUER
from concilia_kit.wire.chain import EventPage, LedgerJob, LedgerRound, LedgerUpdate, Reason, RecordedEvent, RoundStatus
from concilia_model import main
from concilia_model.network_process import NetworkProcess
from concilia_model.releases import Releases
from concilia_model.settings import ModelSettings
from concilia_model.store import MIGRATIONS
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_utils.address import to_checksum_address

ALICE = "0x00000000000000000000000000000000000000A1"
BOB = "0x00000000000000000000000000000000000000b0"
CAROL = "0x00000000000000000000000000000000000000C1"
SERVICE = "0x00000000000000000000000000000000000000D5"


class MemoryLedger:
    """Implements `concilia_model.ledger.Ledger` on a dictionary and a list of events, which `say` adds to."""

    page = 3  # events at one time: few, so that there are pages

    def __init__(self) -> None:
        self.jobs: dict[str, LedgerJob] = {}
        self.said: list[RecordedEvent] = []
        self.asked = 0
        self.away = False

    def job(self, job: str) -> LedgerJob:
        if job not in self.jobs:
            raise NotFound("the ledger knows no such job", code="job_not_found")
        return self.jobs[job]

    def round(self, job: str, number: int) -> LedgerRound:
        return next(item for item in self.job(job).rounds if item.round == number)

    def events(self, before: str | None = None) -> EventPage:
        self.asked += 1
        if self.away:
            raise Unavailable("the ledger does not answer")
        older = [event for event in self.said[::-1] if before is None or event.block < int(before)]
        page = tuple(older[: self.page])
        return EventPage(events=page, before=str(page[-1].block) if len(older) > self.page else None)

    def say(self, name: str, job: str, round_: int, at: float, **arguments: str | int) -> None:
        """An event in a block of its own, at a Unix time."""
        block = len(self.said) + 1
        self.said.append(
            RecordedEvent(
                name=name,
                job=job,
                round=round_,
                account=None,
                block=block,
                log_index=0,
                transaction=f"0x{block:064x}",
                at=datetime.fromtimestamp(at, UTC),
                arguments={"job": job, "round": round_, **arguments},
            )
        )


def _update(job: str, round_number: int, base: str, hospital: str, reason: Reason | None) -> LedgerUpdate:
    update = Update(
        hospital=hospital, job=job, round=round_number, base=base, digest="cd" * 32, samples=10, metrics="ef" * 32
    )
    return LedgerUpdate(
        update=update, signature="0x" + "11" * 65, metrics=None, reason=reason, transaction="0x" + "22" * 32, block=7
    )


@pytest.fixture
def memory_ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture(scope="session")
def ledger_job() -> Callable[..., LedgerJob]:
    """Builds a job: one entry a round, its global digest (None: aborted), and hospitals with rejection reasons."""

    def make(
        job: str,
        initial: str,
        rounds: list[tuple[str | None, dict[str, Reason | None]]],
        *,
        published: bool = True,
    ) -> LedgerJob:
        made, head = [], initial
        for number, (digest, hospitals) in enumerate(rounds, start=1):
            updates = tuple(_update(job, number, head, who, reason) for who, reason in hospitals.items())
            made.append(
                LedgerRound(
                    job=job,
                    round=number,
                    status=RoundStatus.ABORTED if digest is None else RoundStatus.CLOSED,
                    base=head,
                    deadline=1,
                    quorum=1,
                    submitted=len(updates),
                    rejected=sum(item.reason is not None for item in updates),
                    global_digest=digest,
                    contributions=None if digest is None else "ab" * 32,
                    updates=updates,
                )
            )
            head = digest or head
        return LedgerJob(job=job, head=head, published=published, rounds=tuple(made))

    return make


def file_bytes(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> tuple[str, bytes]:
    """A safetensors file and its digest."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    specs = {name: tensorfile.TensorSpec(array.dtype, array.shape) for name, array in arrays.items()}
    header, order = tensorfile.layout(specs, metadata)
    content = header + b"".join(arrays[name].tobytes() for name in order)
    return hashlib.sha256(content).hexdigest(), content


@pytest.fixture(scope="session")
def safetensors() -> Callable[..., tuple[str, bytes]]:
    return file_bytes


@dataclass
class Issuer:
    """Issues access tokens as the auth service does, and publishes its key."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def jwks(self) -> dict[str, Any]:
        public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self.key.public_key()))
        return {"keys": [{**public, "kid": "1", "alg": "EdDSA", "use": "sig"}]}

    def headers(self, address: str, *roles: Role, audience: str = "model") -> dict[str, str]:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": audience,
            "sub": to_checksum_address(address),
            "roles": [role.value for role in roles],
            "iat": now,
            "exp": now + 300,
        }
        return {"Authorization": f"Bearer {jwt.encode(claims, self.key, 'EdDSA', headers={'kid': '1'})}"}


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="session", params=["plain", "sealed"])
def sealing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The key files of the store under test, as `Keyring.read` takes them: everything holds with and without."""
    if request.param == "plain":
        return "", ""
    file = tmp_path_factory.mktemp("keys") / "sealing"
    file.write_text(secrets.token_hex(32))
    return str(file), ""


@pytest.fixture(scope="session")
def keys(sealing: tuple[str, str]) -> Keyring:
    return Keyring.read(*sealing)


@pytest.fixture
def settings(tmp_path: Path, sealing: tuple[str, str]) -> ModelSettings:
    return ModelSettings(
        port=1,
        directory=tmp_path / "artifacts",
        sealing_key_file=sealing[0],
        sealing_keys_before=sealing[1],
        database_url=f"sqlite:///{tmp_path / 'model.db'}",
        auth_url="http://auth.invalid",
        chain_url="http://chain.invalid",
        keystore=tmp_path / "key.json",
        password_file=tmp_path / "password",
        max_artifact_bytes=64 * 2**20,
        reserve_bytes=0,
        max_image_pixels=4_000_000,
        threads=1,
    )


@dataclass
class Service:
    """The service under test: its client, its callers' headers, and what lies behind it."""

    http: httpx.AsyncClient
    ledger: MemoryLedger
    settings: ModelSettings
    issuer: Issuer

    def __post_init__(self) -> None:
        head = self.issuer.headers
        self.alice = head(ALICE, Role.HOSPITAL)
        self.bob = head(BOB, Role.HOSPITAL)
        self.coordinator = head(CAROL, Role.COORDINATOR)
        self.admin = head("0x00000000000000000000000000000000000000aD", Role.ADMIN)
        self.auditor = head("0x00000000000000000000000000000000000000aE", Role.AUDITOR)
        self.clinician = head("0x00000000000000000000000000000000000000aF", Role.CLINICIAN)

    async def put(self, digest: str, content: bytes, who: dict[str, str]) -> httpx.Response:
        return await self.http.put(f"/v1/artifacts/{digest}", content=content, headers=who)

    @property
    def keys(self) -> Keyring:
        return Keyring.read(self.settings.sealing_key_file, self.settings.sealing_keys_before)

    def content(self, path: Path) -> bytes:
        """What a file of the store holds, sealed or not."""
        with StoredFile.open(path, self.keys) as file:
            return b"".join(file.pieces())

    def files(self) -> list[Path]:
        """Every file in the store, finished or not."""
        return [path for path in self.settings.directory.rglob("*") if path.is_file()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in which no file can grow beyond 2 MiB: a file system of that size where one may be mounted, else the
    kernel's limit on file sizes. Either way it is the kernel that says no, in the middle of a write.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, hard))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def networks(sealing: tuple[str, str]) -> Iterator[NetworkProcess]:
    """The process that holds torch: one for all tests, since it takes seconds to begin."""
    made = NetworkProcess(
        threads=1, models_in_memory=4, max_pixels=4_000_000, at_once=2, idle_seconds=600, sealing=sealing
    )
    yield made
    made.close()


@pytest.fixture
def serve(issuer: Issuer, networks: NetworkProcess) -> Callable[..., Any]:
    """Starts the service on given settings: `async with serve(settings) as service`."""

    class _Running:
        def __init__(self, settings: ModelSettings) -> None:
            self.ledger = MemoryLedger()
            self.settings = settings
            offline = httpx.Client(transport=httpx.MockTransport(lambda _request: httpx.Response(503)))
            self.app = main.assemble(
                settings,
                address=SERVICE,
                ledger=self.ledger,
                networks=networks,
                releases=Releases(offline, networks.release),
                fetch_keys=issuer.jwks,
                ready={},
                closing=[offline.close],
            )

        async def __aenter__(self) -> Service:
            self._lifespan = LifespanManager(self.app)
            await self._lifespan.__aenter__()
            transport = httpx.ASGITransport(self.app)
            self._http = httpx.AsyncClient(transport=transport, base_url="http://model", timeout=60)
            return Service(self._http, self.ledger, self.settings, issuer)

        async def __aexit__(self, *error: Any) -> None:
            await self._http.aclose()
            await self._lifespan.__aexit__(*error)

    return _Running


@pytest.fixture
async def service(serve: Callable[..., Any], settings: ModelSettings) -> AsyncIterator[Service]:
    async with serve(settings) as running:
        yield running


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    made = database.engine(f"sqlite:///{tmp_path / 'model.db'}")
    database.migrate(made, MIGRATIONS)
    yield made
    made.dispose()

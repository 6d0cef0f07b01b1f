"""A site, a clock that is set by hand, a chain service in memory, and the service built on a real Redis."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import redis
import uvicorn
from asgi_lifespan import LifespanManager
from concilia_auth import keys, main
from concilia_auth.limits import NoLimits
from concilia_auth.service import AuthService
from concilia_auth.settings import AuthSettings
from concilia_auth.store import Store
from concilia_kit.roles import Role
from concilia_kit.wire.chain import AccountRoles, ContractInfo, Member, SignatureCheck, SignatureVerdict
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Request

CHAIN_ID = 1337


class MemoryRoles:
    """Roles kept in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, frozenset[Role]] = {}

    def of(self, address: str) -> frozenset[Role]:
        return self.held.get(address, frozenset())


Accepted = set[tuple[str, bytes, str]]
"""Wallet, digest and signature."""


class MemoryWallets:
    """Wallets that accept what they were told to."""

    def __init__(self) -> None:
        self.accepted: Accepted = set()
        self.asked = 0

    def accept(self, address: str, digest: bytes, signature: str) -> bool:
        self.asked += 1
        return (address, digest, signature) in self.accepted


@dataclass
class Clock:
    """Shows the same time until it is moved."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class ChainService:
    """A chain service that answers what it is told, on a real socket."""

    url: str
    held: dict[str, frozenset[Role]] = field(default_factory=dict)
    contract_asked: int = 0
    impostor: str | None = None
    roles_asked: list[str] = field(default_factory=list)
    accepted: Accepted = field(default_factory=set)
    tokens: list[str] = field(default_factory=list)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def account() -> LocalAccount:
    made: LocalAccount = Account.create()
    return made


@pytest.fixture
def sign() -> Callable[[LocalAccount, str], str]:
    def personal_sign(account: LocalAccount, text: str) -> str:
        return str(account.sign_message(encode_defunct(text=text)).signature.to_0x_hex())

    return personal_sign


@pytest.fixture
def memory_roles() -> MemoryRoles:
    return MemoryRoles()


@pytest.fixture
def memory_wallets() -> MemoryWallets:
    return MemoryWallets()


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> AuthSettings:
    return AuthSettings(
        port=8001,
        redis_url=redis_url,
        chain_url="http://127.0.0.1:1",  # nobody is there
        domain="127.0.0.1:8000",
        uri="http://127.0.0.1:8000",
        chain_id=CHAIN_ID,
        key_directory=tmp_path / "keys",
    )


@pytest.fixture
def redis_connection(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def store(redis_connection: redis.Redis) -> Store:
    return Store(redis_connection)


@pytest.fixture
def service(
    settings: AuthSettings, store: Store, memory_roles: MemoryRoles, clock: Clock, memory_wallets: MemoryWallets
) -> AuthService:
    keys.ensure(settings.key_directory, clock())
    return AuthService(
        settings,
        store,
        keys.KeyRing(settings.key_directory),
        memory_roles,
        lambda: settings.chain_id,
        clock,
        wallets=memory_wallets,
        limits=NoLimits(),
    )


@pytest.fixture(scope="session")
def chain_server(free_port: Callable[[], int]) -> Iterator[ChainService]:
    port = free_port()
    state = ChainService(f"http://127.0.0.1:{port}")
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/contract")
    def contract() -> ContractInfo:
        state.contract_asked += 1
        return ContractInfo(chain_id=CHAIN_ID, address="0x" + 40 * "1", deployment_block=1)

    @app.get("/v1/members/{address}")
    def member(address: str) -> Member:
        roles = tuple(sorted(state.held.get(address, frozenset())))
        return Member(address=state.impostor or address, roles=roles, hospital_number=0, nonce=0)

    @app.get("/v1/members/{address}/roles")
    def account_roles(address: str) -> AccountRoles:
        state.roles_asked.append(address)
        roles = tuple(sorted(state.held.get(address, frozenset())))
        return AccountRoles(address=state.impostor or address, roles=roles, block=1)

    @app.post("/v1/signatures")
    def check_signature(check: SignatureCheck, request: Request) -> SignatureVerdict:
        state.tokens.append(request.headers["Authorization"].removeprefix("Bearer "))
        return SignatureVerdict(valid=(check.address, bytes.fromhex(check.digest), check.signature) in state.accepted)

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the chain service did not start"
        thread.join(0.01)
    yield state
    server.should_exit = True
    thread.join()


@pytest.fixture
def chain_service(chain_server: ChainService) -> ChainService:
    """The session's chain service, as new."""
    chain_server.held.clear()
    chain_server.contract_asked = 0
    chain_server.impostor = None
    chain_server.roles_asked.clear()
    chain_server.accepted.clear()
    chain_server.tokens.clear()
    return chain_server


@pytest.fixture
async def site(
    settings: AuthSettings, chain_service: ChainService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """The auth service as a browser meets it: over https, keeping cookies, the clock set by hand."""
    monkeypatch.setattr(main, "_now", clock)
    app = main.build(settings.model_copy(update={"chain_url": chain_service.url}))
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://auth.test") as client,
    ):
        yield client

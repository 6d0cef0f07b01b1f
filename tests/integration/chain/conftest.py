"""A chain service with real keys, real signatures and a real Redis, on an EVM within the process or on a node.

`CONCILIA_TEST_RPC_URL` names a development node with unlocked accounts (Ganache, Anvil); else the EVM is in-process.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from asgi_lifespan import LifespanManager
from concilia_chain import main, providers
from concilia_chain.settings import ChainSettings
from concilia_kit import digests, signing
from concilia_kit.roles import Role
from concilia_kit.signing import Domain, RoleChange, Update
from concilia_kit.tokens import ALGORITHM, ISSUER, TokenVerifier
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.chain import ContractInfo, RoundOpening, SignedRoleChange, UpdateSubmission
from concilia_kit.wire.training import UpdateMetrics
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from pydantic import BaseModel
from web3 import Web3

RPC_URL = os.environ.get("CONCILIA_TEST_RPC_URL", "eth-tester://")
ENOUGH = 10**18  # wei


class Issuer:
    """Stands where the auth service does: signs access tokens and publishes its key."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def keys(self) -> dict[str, Any]:
        entry = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**entry, "kid": "one", "alg": ALGORITHM}]}

    def token(self, address: str, *roles: Role, audience: Audience = Audience.CHAIN) -> str:
        now = int(time.time())
        claims = {"sub": address, "aud": audience, "iss": ISSUER, "iat": now, "exp": now + 300, "roles": list(roles)}
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": "one"})


class Consortium:
    """A running service and those who use it."""

    def __init__(
        self, app: FastAPI, http: httpx.AsyncClient, client: Web3, settings: ChainSettings, admin: LocalAccount
    ) -> None:
        self.app = app
        self.http = http
        self.client = client
        self.settings = settings
        self.admin = admin
        self.issuer = Issuer()
        self.info: ContractInfo
        self.verifier_as_built = app.state.verifier
        # Most tests' callers hold on the contract nothing of what their tokens say.
        app.state.verifier = TokenVerifier(Audience.CHAIN, self.issuer.keys)

    async def start(self) -> None:
        self.info = ContractInfo.model_validate((await self.http.get("/v1/contract")).json())

    @property
    def domain(self) -> Domain:
        return Domain(chain_id=self.info.chain_id, contract=self.info.address)

    async def post(self, path: str, body: BaseModel | dict[str, Any] | None, *roles: Role) -> httpx.Response:
        content = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
        return await self.http.post(path, json=content, headers=self.headers(*(roles or (Role.COORDINATOR,))))

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.http.get(path, params=params, headers=self.headers(Role.AUDITOR))

    def headers(self, *roles: Role) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.issuer.token(self.admin.address, *roles)}"}

    async def change(self, role: Role, account: str, granted: bool = True, **replaced: Any) -> httpx.Response:
        """Have the administrator sign a role change and relay it; `replaced` spoils what is signed."""
        signed = await self.signed_change(role, account, granted, **replaced)
        return await self.http.post("/v1/role-changes", json=signed.model_dump(mode="json"))

    async def signed_change(self, role: Role, account: str, granted: bool = True, **replaced: Any) -> SignedRoleChange:
        known = (await self.http.get(f"/v1/members/{self.admin.address}")).json()
        fields = {
            "role": role,
            "account": account,
            "granted": granted,
            "nonce": known["nonce"],
            "deadline": int(time.time()) + 600,
        } | replaced
        change = RoleChange.model_validate(fields)
        return SignedRoleChange(
            change=change, admin=self.admin.address, signature=signing.sign(change, self.domain, self.admin)
        )

    async def hospital(self) -> LocalAccount:
        account: LocalAccount = Account.create()
        assert (await self.change(Role.HOSPITAL, account.address)).status_code == 201
        return account

    def opening(self, **replaced: Any) -> RoundOpening:
        fields = {
            "job": secrets.token_hex(32),
            "round": 1,
            "base": secrets.token_hex(32),
            "deadline": int(time.time()) + 3600,
            "quorum": 1,
        } | replaced
        return RoundOpening.model_validate(fields)

    async def open(self, **replaced: Any) -> RoundOpening:
        opening = self.opening(**replaced)
        answer = await self.post("/v1/rounds", opening)
        assert answer.status_code == 201, answer.text
        return opening

    def submission(
        self, hospital: LocalAccount, opening: RoundOpening, key: LocalAccount | None = None, **replaced: Any
    ) -> UpdateSubmission:
        """A hospital's signed update; `key` signs in its stead, `replaced` changes what is signed."""
        metrics = UpdateMetrics(
            loss=secrets.randbelow(10**6) / 10**6,
            accuracy=0.5,
            images=100,
            lesions=80,
            skipped_images=0,
            epochs=1,
            seconds_download=0.1,
            seconds_training=2.5,
            seconds_upload=0.2,
            bytes_download=1000,
            bytes_upload=1000,
        )
        fields = {
            "hospital": hospital.address,
            "job": opening.job,
            "round": opening.round,
            "base": opening.base,
            "digest": secrets.token_hex(32),
            "samples": 100,
            "metrics": digests.of_json(metrics.model_dump(mode="json")),
        } | replaced
        update = Update.model_validate(fields)
        return UpdateSubmission(
            update=update, metrics=metrics, signature=signing.sign(update, self.domain, key or hospital)
        )

    async def submit(self, submission: UpdateSubmission) -> httpx.Response:
        return await self.post("/v1/updates", submission, Role.HOSPITAL)

    @property
    def contract(self) -> Any:
        """The ledger, past the service."""
        abi = json.loads(self.settings.contract_file.read_text())["abi"]
        return self.client.eth.contract(address=Web3.to_checksum_address(self.info.address), abi=abi)

    def send(self, key: LocalAccount, function: str, *arguments: Any) -> str:
        """A transaction by somebody's own key, past the service; its hash."""
        called = self.contract.get_function_by_name(function)(*arguments)
        return self.transact(key, self.info.address, called.build_transaction({"gas": 1})["data"])

    def transact(self, key: LocalAccount, to: str | None, data: str, gas: int | None = None) -> str:
        """Any transaction by somebody's own key; its hash."""
        fields: Any = {"from": key.address, "data": data} | ({} if to is None else {"to": to})
        nonce = self.client.eth.get_transaction_count(key.address)
        fees = {"maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**9}
        built = {**fields, **fees, "nonce": nonce, "value": 0, "chainId": self.info.chain_id}
        built["gas"] = gas or self.client.eth.estimate_gas(fields) * 6 // 5
        sent = self.client.eth.send_raw_transaction(key.sign_transaction(built).raw_transaction)
        assert self.client.eth.wait_for_transaction_receipt(sent, poll_latency=0.05)["status"] == 1
        return "0x" + bytes(sent).hex()


@pytest.fixture(scope="session")
def relay() -> LocalAccount:
    account: LocalAccount = Account.create()
    return account


@pytest.fixture(scope="session")
def admin() -> LocalAccount:
    account: LocalAccount = Account.create()
    return account


@pytest.fixture
def client(relay: LocalAccount, admin: LocalAccount) -> Web3:
    """An EVM on which relay and administrator own ether; a fresh one where it is in-process."""
    connected = providers.connect(RPC_URL, funded=[relay.address, admin.address])
    for account in (relay.address, admin.address):
        if connected.eth.get_balance(account) < ENOUGH:
            gift = {"from": connected.eth.accounts[0], "to": account, "value": 2 * ENOUGH}
            connected.eth.wait_for_transaction_receipt(connected.eth.send_transaction(gift))  # type: ignore[arg-type]
    return connected


@pytest.fixture
def settings(tmp_path: Path, relay: LocalAccount, admin: LocalAccount, redis_url: str) -> ChainSettings:
    password, keystore = tmp_path / "password", tmp_path / "keystore.json"
    password.write_text("secret")
    # PBKDF2 with one iteration: the real cost, a second a start, is the keystore's test's business.
    keystore.write_text(json.dumps(Account.encrypt(relay.key, "secret", kdf="pbkdf2", iterations=1)))
    return ChainSettings(
        port=8004,
        rpc_url=RPC_URL,
        admin_address=admin.address,
        keystore=keystore,
        password_file=password,
        database_url=f"sqlite:///{tmp_path / 'chain.db'}",
        redis_url=redis_url,
        auth_url="http://127.0.0.1:1",
        poll_seconds=0.05,
        receipt_seconds=5,
        start_seconds=0,
    )


Start = Callable[..., AbstractAsyncContextManager[Consortium]]


@pytest.fixture
def start(settings: ChainSettings, client: Web3, admin: LocalAccount) -> Start:
    """Start the service; with other settings or another connection where they are given."""

    @asynccontextmanager
    async def started(own: ChainSettings = settings, connection: Web3 = client) -> AsyncIterator[Consortium]:
        app = main.build(own, connection)
        async with LifespanManager(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://chain") as http:
                consortium = Consortium(app, http, connection, own, admin)
                await consortium.start()
                yield consortium

    return started


@pytest.fixture
async def consortium(start: Start) -> AsyncIterator[Consortium]:
    async with start() as running:
        yield running

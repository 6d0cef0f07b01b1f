"""Constructs the service from its settings: the only place that opens connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis
import tenacity
from concilia_kit import database, http, keystore, metrics, web
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Audience
from fastapi import FastAPI
from web3 import Web3

from concilia_chain import api, contract_file, deployment, providers
from concilia_chain.door import Door
from concilia_chain.errors import ChainUnavailable
from concilia_chain.follower import Follower
from concilia_chain.ledger import LedgerContract
from concilia_chain.metrics import ChainMetrics, watch
from concilia_chain.refusals import RefusalReader
from concilia_chain.sender import Sender
from concilia_chain.service import ChainService
from concilia_chain.settings import ChainSettings
from concilia_chain.store import Store

KEYS_PATH = "/.well-known/jwks.json"
MIGRATIONS = Path(__file__).with_name("migrations")


def build(settings: ChainSettings, client: Web3 | None = None) -> FastAPI:
    """The service, attached to its ledger, which is deployed where there is none.

    `client` is a connection to use in place of `rpc_url`'s. Raises `StartError`, `KeystoreError`, `ChainUnavailable`,
    `sqlalchemy.exc.SQLAlchemyError`.
    """
    contract = contract_file.read(settings.contract_file)
    relay = keystore.load(settings.keystore, settings.password_file)
    client = client or providers.connect(settings.rpc_url, funded=[relay.address])
    engine = database.engine(settings.database_url)
    database.migrate(engine, MIGRATIONS)

    def open_at(address: str) -> LedgerContract:
        return LedgerContract(client, address, contract.abi, caller=relay.address)

    chain = _patient(settings.start_seconds)(deployment.chain_id, client, settings.chain_id)
    sender = Sender(client, relay, chain, RefusalReader(contract.abi), settings.receipt_seconds)
    if settings.contract_address is not None:
        known = deployment.attach(engine, chain, settings.contract_address, open_at)
    else:
        known = deployment.find_or_deploy(
            engine,
            chain,
            open_at,
            sender,
            lambda: deployment.creation_call(client, contract, settings.admin_address, relay.address),
        )

    ledger = open_at(known.address)
    store = Store(engine, known)
    stream = redis.Redis.from_url(settings.redis_url)
    follower = Follower(ledger, store, stream, settings.poll_seconds)
    auth = http.client(settings.auth_url)
    registry = metrics.registry()
    watch(registry, follower.standing)
    service = ChainService(ledger, sender, follower, store, ChainMetrics(registry))

    def fetch_keys() -> dict[str, Any]:
        keys: dict[str, Any] = http.call(auth, "GET", KEYS_PATH, retry_seconds=2.0).json()
        return keys

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        yield
        follower.stop()
        stream.close()
        auth.close()
        engine.dispose()

    app = web.application(
        "Concilia chain",
        ready={
            "rpc": ledger.head,
            "database": lambda: database.answer(engine),
            "redis": stream.ping,
            "follower": follower.check,
        },
        verifier=TokenVerifier(
            Audience.CHAIN, fetch_keys, standing=lambda address, _: frozenset(service.account_roles(address).roles)
        ),
        lifespan=lifespan,
        registry=registry,
    )
    app.state.service = service
    app.state.door = Door(providers.node(client), chain, providers.ANSWER_SECONDS)
    app.include_router(api.router)
    return app


def _patient(seconds: float) -> tenacity.Retrying:
    """Asks again while the node is not up yet: containers start in any order."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ChainUnavailable),
        wait=tenacity.wait_fixed(0.5),
        stop=tenacity.stop_after_delay(seconds),
        reraise=True,
    )

"""Every process of Concilia as its `main` builds it, side by side in this one, and what each says of itself."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from concilia_aggregator import main as aggregator
from concilia_aggregator.settings import AggregatorSettings
from concilia_auth import main as auth
from concilia_auth.settings import AuthSettings
from concilia_chain import main as chain
from concilia_chain.settings import ChainSettings
from concilia_client_node import drawn
from concilia_client_node import main as node
from concilia_client_node.settings import NodeSettings
from concilia_model import main as model
from concilia_model.settings import ModelSettings
from eth_account import Account
from fastapi import FastAPI

NOBODY = "http://127.0.0.1:1"


@asynccontextmanager
async def calling(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose background threads do not run."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.fixture(scope="session")
def applications(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> dict[str, FastAPI]:
    """The six applications by the name that Prometheus knows them under."""
    folder = tmp_path_factory.mktemp("processes")
    drawn.write_drawn(folder / "lesions", images=60, seed=1)
    before = structlog.get_config()
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    try:
        return _build(folder, redis_server_url)
    finally:  # the aggregator sets up logging for its process, which this one is not
        structlog.configure(**before)
        logging.getLogger().handlers, logging.getLogger().level = handlers, level


def _build(folder: Path, redis_url: str) -> dict[str, FastAPI]:
    account = Account.create()
    password, keystore = folder / "password", folder / "key.json"
    password.write_text("secret")
    keystore.write_text(json.dumps(Account.encrypt(account.key, "secret", kdf="pbkdf2", iterations=1)))
    shared: dict[str, Any] = {"port": 8000, "keystore": keystore, "password_file": password, "auth_url": NOBODY}
    urls = {"model_url": NOBODY, "chain_url": NOBODY}
    of_aggregator = AggregatorSettings(
        **shared, **urls, database_url=f"sqlite:///{folder}/a.db", redis_url=redis_url, directory=folder / "a"
    )
    of_chain = ChainSettings(
        **shared,
        rpc_url="eth-tester://",
        admin_address=account.address,
        database_url=f"sqlite:///{folder}/c.db",
        redis_url=redis_url,
    )
    of_model = ModelSettings(
        **shared, chain_url=NOBODY, directory=folder / "m", database_url=f"sqlite:///{folder}/m.db"
    )
    of_node = NodeSettings(
        **shared, **urls, aggregator_url=NOBODY, broker_url=redis_url, data=folder / "lesions", directory=folder / "n"
    )
    of_auth = AuthSettings(
        port=8000, redis_url=redis_url, chain_url=NOBODY, domain="localhost", uri=NOBODY, key_directory=folder / "keys"
    )
    return {
        "auth": auth.build(of_auth),
        "model": model.build(of_model),
        "aggregator": aggregator.build_api(of_aggregator),
        "aggregator-worker": aggregator.build_worker(of_aggregator)[1],
        "chain": chain.build(of_chain),
        "client-node": node.build(of_node).health,
    }

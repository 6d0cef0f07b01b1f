"""The auth service as processes, before a chain service that knows nobody, and what a person does there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from concilia_kit import http
from concilia_kit.http import call
from concilia_kit.wire.chain import AccountRoles, ContractInfo, Member, SignatureCheck, SignatureVerdict
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI

CHAIN_ID = 1337
ORIGIN = "http://127.0.0.1:8000"
UNLIMITED = {"CONCILIA_AUTH_ADDRESS_RATE": "0", "CONCILIA_AUTH_SOURCE_RATE": "0"}


@contextlib.contextmanager
def chain_service(port: int) -> Iterator[str]:
    """A chain service on which nobody holds a role and no wallet accepts anything."""
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/contract")
    async def contract() -> ContractInfo:
        return ContractInfo(chain_id=CHAIN_ID, address="0x" + 40 * "1", deployment_block=1)

    @app.get("/v1/members/{address}")
    async def member(address: str) -> Member:
        return Member(address=address, roles=(), hospital_number=0, nonce=0)

    @app.get("/v1/members/{address}/roles")
    async def account_roles(address: str) -> AccountRoles:
        return AccountRoles(address=address, roles=(), block=1)

    @app.post("/v1/signatures")
    async def check_signature(_: SignatureCheck) -> SignatureVerdict:
        return SignatureVerdict(valid=False)

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def auth_service(port: int, redis_url: str, chain_url: str, keys: Path, **environment: str) -> Iterator[str]:
    """The auth service as a process, ready; `environment` are settings beside the usual ones."""
    given = {
        **os.environ,
        "CONCILIA_AUTH_PORT": str(port),
        "CONCILIA_AUTH_REDIS_URL": redis_url,
        "CONCILIA_AUTH_CHAIN_URL": chain_url,
        "CONCILIA_AUTH_DOMAIN": ORIGIN.removeprefix("http://"),
        "CONCILIA_AUTH_URI": ORIGIN,
        "CONCILIA_AUTH_KEY_DIRECTORY": str(keys),
        "CONCILIA_AUTH_LOG_LEVEL": "WARNING",
        **environment,
    }
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, "-m", "concilia_auth"], env=given) as process:
        try:
            with http.client(url) as client:
                call(client, "GET", "/readyz", retry_seconds=60)
            yield url
        finally:
            process.terminate()


def signed_challenge(client: httpx.Client, key: LocalAccount) -> dict[str, str]:
    """A challenge's message and its signature, not yet sent."""
    message = call(client, "POST", "/v1/challenges", json={"address": key.address}).json()["message"]
    signature = key.sign_message(encode_defunct(text=message)).signature.to_0x_hex()
    return {"message": message, "signature": signature}

"""Contract wallets sign in: the auth service as a process, this service over HTTP, wallets on its EVM."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from concilia_chain.settings import ChainSettings
from concilia_kit import http
from concilia_kit.http import call
from concilia_kit.roles import Role
from web3 import Web3

from . import contract_wallets as wallets


@dataclass
class Sites:
    consortium: Any
    auth: httpx.Client
    chain_url: str
    make: wallets.Maker

    def sign_in(self, address: str, sign: Callable[[str], str]) -> httpx.Response:
        message = call(self.auth, "POST", "/v1/challenges", json={"address": address}).json()["message"]
        return self.auth.post("/v1/sessions", json={"message": message, "signature": sign(message)})


@pytest.fixture
async def sites(
    start: Any, settings: ChainSettings, redis_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> AsyncIterator[Sites]:
    auth_port, chain_port = free_port(), free_port()
    chain_url = f"http://127.0.0.1:{chain_port}"
    environment = {
        **os.environ,
        "CONCILIA_AUTH_PORT": str(auth_port),
        "CONCILIA_AUTH_REDIS_URL": redis_url,
        "CONCILIA_AUTH_CHAIN_URL": chain_url,
        "CONCILIA_AUTH_DOMAIN": "127.0.0.1:8000",
        "CONCILIA_AUTH_URI": "http://127.0.0.1:8000",
        "CONCILIA_AUTH_KEY_DIRECTORY": str(tmp_path / "keys"),
    }
    async with start(settings.model_copy(update={"auth_url": f"http://127.0.0.1:{auth_port}"})) as consortium:
        consortium.app.state.verifier = consortium.verifier_as_built
        server = uvicorn.Server(uvicorn.Config(consortium.app, port=chain_port, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        with (
            subprocess.Popen([sys.executable, "-m", "concilia_auth"], env=environment) as process,
            http.client(f"http://127.0.0.1:{auth_port}") as auth,
        ):
            try:
                call(auth, "GET", "/readyz", retry_seconds=60)
                yield Sites(consortium, auth, chain_url, wallets.Maker(consortium.client, consortium.admin))
            finally:
                process.terminate()
                server.should_exit = True
                thread.join()


async def test_wallets_sign_in_and_hold_their_roles(sites: Sites) -> None:
    owner = wallets.new_key()
    wallet = sites.make.deploy(wallets.creation("TestWallet", owner.address))
    assert (await sites.consortium.change(Role.AUDITOR, wallet)).status_code == 201
    session = sites.sign_in(wallet, lambda text: wallets.personal_sign(owner, text))
    assert session.status_code == 201, session.text
    assert (session.json()["address"], session.json()["roles"]) == (wallet, ["auditor"])

    bearer = {"Authorization": f"Bearer {session.json()['token']}"}
    token = call(sites.auth, "POST", "/v1/tokens", json={"audience": "chain"}, headers=bearer).json()["token"]
    with http.client(sites.chain_url) as chain:
        authorised = {"Authorization": f"Bearer {token}"}
        (member,) = call(chain, "GET", "/v1/members?role=auditor", headers=authorised).json()
        assert member["address"] == wallet
        check = {"address": wallet, "digest": "00" * 32, "signature": "0x"}
        refused = chain.post("/v1/signatures", json=check, headers=authorised)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


async def test_wallets_that_are_yet_to_be_made_sign_in(sites: Sites) -> None:
    owner = wallets.new_key()
    factory = sites.make.deploy(wallets.creation("TestWalletFactory"))
    future, order = wallets.future_address(factory, owner.address), wallets.create_order(owner.address)

    def sign(text: str) -> str:
        return wallets.wrapped(factory, order, wallets.personal_sign(owner, text))

    session = sites.sign_in(future, sign)
    assert (session.status_code, session.json()["address"], session.json()["roles"]) == (201, future, [])
    assert not sites.consortium.client.eth.get_code(Web3.to_checksum_address(future))
    assert sites.sign_in(wallets.new_key().address, sign).status_code == 401


async def test_others_do_not_sign_in_as_a_wallet(sites: Sites) -> None:
    owner, thief = wallets.new_key(), wallets.new_key()
    wallet = sites.make.deploy(wallets.creation("TestWallet", owner.address))
    agreeable = sites.make.deploy(wallets.raw(f"7f{wallets.YES}5f5260205ff3"))
    loops = sites.make.deploy(wallets.raw(wallets.HOSTILE["loops for ever"]))
    reverts = sites.make.deploy(wallets.raw(wallets.HOSTILE["reverts"]))
    for address, sign in (
        (wallet, lambda text: wallets.personal_sign(thief, text)),
        (wallet, lambda text: wallets.personal_sign(owner, text + " ")),
        (wallet, lambda _: "0x"),
        (wallet, lambda text: wallets.wrapped(agreeable, b"", wallets.personal_sign(thief, text))),
        (owner.address, lambda text: wallets.wrapped(agreeable, b"", wallets.personal_sign(thief, text))),
        (loops, lambda text: wallets.personal_sign(owner, text)),
        (reverts, lambda text: wallets.personal_sign(owner, text)),
        (thief.address, lambda text: wallets.wrapped(loops, b"", wallets.personal_sign(owner, text))),
        (thief.address, lambda _: "0x" + "11" * 8000 + wallets.SUFFIX),
    ):
        refused = sites.sign_in(address, sign)
        assert (refused.status_code, refused.json()["code"]) == (401, "signature_invalid"), address
    assert sites.sign_in(agreeable, lambda _: "0x").status_code == 201, "it says yes to all, and is its own judge"
    assert sites.sign_in(wallet, lambda text: wallets.personal_sign(owner, text)).status_code == 201


async def test_a_wallets_sign_in_works_once(sites: Sites) -> None:
    owner = wallets.new_key()
    wallet = sites.make.deploy(wallets.creation("TestWallet", owner.address))
    message = call(sites.auth, "POST", "/v1/challenges", json={"address": wallet}).json()["message"]
    signed = {"message": message, "signature": wallets.personal_sign(owner, message)}
    told = [sites.auth.post("/v1/sessions", json=signed).status_code for _ in range(3)]
    assert told == [201, 401, 401]

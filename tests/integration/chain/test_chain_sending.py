"""The relay when the node loses answers, mines nothing, or mines what it should not; and when it cannot start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia_chain import main, providers
from concilia_chain.errors import ChainUnavailable, StartError
from concilia_kit.keystore import KeystoreError
from web3.types import RPCEndpoint


class Faults:
    """Stands between the service and its chain, and spoils calls by name."""

    def __init__(self, client: Any) -> None:
        self._make = client.provider.make_request
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.calls: list[str] = []
        client.provider.make_request = self
        # web3 keeps the function that it has combined with its middleware.
        client.provider._request_func_cache = (None, None)

    def __call__(self, method: RPCEndpoint, params: Any) -> Any:
        self.calls.append(method)
        if (spoil := self.before.get(method)) is not None and (answer := spoil()) is not None:
            return answer
        answer = self._make(method, params)
        if (spoil := self.after.get(method)) is not None:
            spoil()
        return answer


@pytest.fixture
def faults(client: Any) -> Faults:
    return Faults(client)


def away() -> None:
    raise ChainUnavailable("the node does not answer")


async def test_a_refused_update_is_never_sent(faults: Faults, consortium: Any) -> None:
    opening = await consortium.open()
    hospital = await consortium.hospital()
    faults.calls.clear()
    answer = await consortium.submit(consortium.submission(hospital, opening, samples=0))
    assert answer.json()["code"] == "no_samples"
    assert "eth_call" in faults.calls  # with or without an estimate before: that depends on the newest block's age
    assert "eth_sendRawTransaction" not in faults.calls


async def test_an_answer_lost_after_the_broadcast(faults: Faults, consortium: Any) -> None:
    faults.after["eth_sendRawTransaction"] = away
    opening = consortium.opening()
    answer = await consortium.post("/v1/rounds", opening)
    assert (answer.status_code, answer.json()["code"]) == (503, "chain_unavailable")
    faults.after.clear()
    assert (await consortium.post("/v1/rounds", opening)).status_code == 200
    assert len((await consortium.get(f"/v1/jobs/{opening.job}/events")).json()) == 1
    await consortium.open()


async def test_a_node_away_before_the_broadcast(faults: Faults, consortium: Any) -> None:
    opening = consortium.opening()
    faults.before["eth_sendRawTransaction"] = away
    answer = await consortium.post("/v1/rounds", opening)
    assert (answer.status_code, answer.json()["code"]) == (503, "chain_unavailable")
    faults.before.clear()
    assert (await consortium.post("/v1/rounds", opening)).status_code == 200  # it was kept
    assert len((await consortium.get(f"/v1/jobs/{opening.job}/events")).json()) == 1


@pytest.mark.parametrize("method", ["eth_getTransactionCount", "eth_estimateGas", "eth_getBlockByNumber"])
async def test_a_node_away(faults: Faults, consortium: Any, method: str) -> None:
    faults.before[method] = away
    answer = await consortium.post("/v1/rounds", consortium.opening())
    assert (answer.status_code, answer.json()["code"]) == (503, "chain_unavailable")
    faults.before.clear()
    await consortium.open()


async def test_a_node_away_makes_it_not_ready(faults: Faults, consortium: Any) -> None:
    faults.before["eth_blockNumber"] = away
    answer = await consortium.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["rpc"] == "ChainUnavailable"
    faults.before.clear()


async def test_another_used_the_relays_key(consortium: Any, relay: Any) -> None:
    await consortium.open()
    nonce = consortium.client.eth.get_transaction_count(relay.address)
    fields = {"to": relay.address, "value": 0, "gas": 21_000, "nonce": nonce, "chainId": consortium.info.chain_id}
    signed = relay.sign_transaction({**fields, "maxFeePerGas": 3 * 10**9, "maxPriorityFeePerGas": 10**9})
    consortium.client.eth.send_raw_transaction(signed.raw_transaction)
    await consortium.open()


async def test_a_transaction_that_is_not_mined(faults: Faults, start: Any, settings: Any) -> None:
    async with start(settings.model_copy(update={"receipt_seconds": 0.2})) as consortium:
        opening = consortium.opening()
        faults.before["eth_getTransactionReceipt"] = lambda: {"jsonrpc": "2.0", "id": 0, "result": None}
        answer = await consortium.post("/v1/rounds", opening)
        assert (answer.status_code, answer.json()["code"]) == (503, "receipt_timeout")
        faults.before.clear()
        # It was mined after all: the repetition finds it.
        again = answer
        for _ in range(100):
            if again.status_code == 503:
                again = await consortium.post("/v1/rounds", opening)
        [event] = (await consortium.get(f"/v1/jobs/{opening.job}/events")).json()
        assert (again.status_code, again.json()["transaction"]) == (200, event["transaction"])


async def test_a_revert_on_chain_after_a_good_dry_run(faults: Faults, consortium: Any) -> None:
    hospital = await consortium.hospital()
    opening = await consortium.open()
    submission = consortium.submission(hospital, opening)

    other = consortium.submission(hospital, opening)

    def someone_is_faster() -> None:
        faults.before.clear()
        update = other.update
        entry = (update.hospital, bytes.fromhex(update.digest), update.samples, bytes.fromhex(update.metrics))
        batch = [(*entry, bytes.fromhex(other.signature[2:]))]
        job, base = bytes.fromhex(opening.job), bytes.fromhex(opening.base)
        consortium.send(consortium.admin, "submitUpdates", job, 1, base, batch)

    faults.before["eth_sendRawTransaction"] = someone_is_faster
    answer = await consortium.submit(submission)
    assert (answer.status_code, answer.json()["code"]) == (409, "already_submitted")
    # What somebody else relayed for the hospital is as good as relayed here.
    assert (await consortium.submit(other)).status_code == 200


def test_another_chain_than_wanted(settings: Any, client: Any) -> None:
    with pytest.raises(StartError, match="not 1337"):
        main.build(settings.model_copy(update={"chain_id": 1337}), client)


def test_an_address_without_a_ledger(settings: Any, client: Any, relay: Any) -> None:
    with pytest.raises(StartError, match="no contract at"):
        main.build(settings.model_copy(update={"contract_address": relay.address}), client)


def test_a_contract_that_is_no_ledger(settings: Any, client: Any, admin: Any) -> None:
    # 0x00 as runtime code: PUSH1 1 PUSH1 0 RETURN as creation code.
    fields = {"data": "0x60016000f3", "gas": 100_000, "nonce": 0, "chainId": client.eth.chain_id, "value": 0}
    signed = admin.sign_transaction({**fields, "maxFeePerGas": 3 * 10**9, "maxPriorityFeePerGas": 10**9})
    sent = client.eth.send_raw_transaction(signed.raw_transaction)
    address = client.eth.get_transaction_receipt(sent)["contractAddress"]
    with pytest.raises(StartError, match="no Concilia ledger"):
        main.build(settings.model_copy(update={"contract_address": address}), client)


def test_nobody_to_administrate(settings: Any, client: Any) -> None:
    with pytest.raises(StartError, match="CONCILIA_CHAIN_ADMIN_ADDRESS"):
        main.build(settings.model_copy(update={"admin_address": None}), client)


def test_a_relay_without_ether(settings: Any, admin: Any) -> None:
    with pytest.raises(ChainUnavailable, match="afford"):
        main.build(settings, providers.connect("eth-tester://", [admin.address]))


@pytest.mark.parametrize("content", [None, "not json", "{}", "[]", '{"abi": [], "bytecode": null}'])
def test_no_contract_build(settings: Any, client: Any, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "build.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartError, match=r"build\.json"):
        main.build(settings.model_copy(update={"contract_file": path}), client)


def test_a_wrong_password(settings: Any, client: Any) -> None:
    settings.password_file.write_text("wrong")
    with pytest.raises(KeystoreError):
        main.build(settings, client)


def environment(settings: Any, **replaced: str) -> dict[str, str]:
    values = {
        "PORT": "8004",
        "RPC_URL": settings.rpc_url,
        "ADMIN_ADDRESS": settings.admin_address,
        "CONTRACT_ADDRESS": "",
        "KEYSTORE": str(settings.keystore),
        "PASSWORD_FILE": str(settings.password_file),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "AUTH_URL": settings.auth_url,
        "START_SECONDS": "0",
    } | replaced
    return os.environ | {f"CONCILIA_CHAIN_{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"PORT": "no"}, "CONCILIA_CHAIN_PORT"),
        ({"RPC_URL": "ftp://x"}, "CONCILIA_CHAIN_RPC_URL"),
        ({"ADMIN_ADDRESS": ""}, "CONCILIA_CHAIN_ADMIN_ADDRESS"),
        ({"CHAIN_ID": "5"}, "CONCILIA_CHAIN_CHAIN_ID"),
        ({"RPC_URL": "http://127.0.0.1:1"}, "does not answer"),
        ({"KEYSTORE": "/nowhere/keystore.json"}, "/nowhere/keystore.json"),
        ({"DATABASE_URL": "sqlite:////nowhere/chain.db"}, "CONCILIA_CHAIN_DATABASE_URL"),
        ({"DATABASE_URL": "nonsense"}, "CONCILIA_CHAIN_DATABASE_URL"),
    ],
)
def test_one_clear_line_where_it_cannot_start(settings: Any, replaced: dict[str, str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "concilia_chain"], env=environment(settings, **replaced), capture_output=True, text=True
    )
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if line.startswith("concilia-chain: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in ended.stderr


def test_it_serves_as_a_process(settings: Any, free_port: Any) -> None:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "concilia_chain"],
        env=environment(settings, PORT=str(port)),
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            for _ in range(600):
                try:
                    answer = httpx.get(f"http://127.0.0.1:{port}/readyz")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            assert answer.status_code == 200
        finally:
            process.terminate()
        assert process.wait() in (0, -15)

"""The EVM within the process: its clock, its errors, its estimates; and nodes that do not answer."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from concilia_chain import contract_file, providers
from concilia_chain.errors import ChainUnavailable
from concilia_chain.ledger import answered
from concilia_chain.settings import ChainSettings
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.exceptions import ContractCustomError, Web3RPCError

KEY: LocalAccount = Account.from_key(b"\x05" * 32)
BUILD = contract_file.read(Path(str(ChainSettings.model_fields["contract_file"].default)))


@pytest.fixture
def client() -> Web3:
    return providers.connect("eth-tester://", [KEY.address])


def send(client: Web3, nonce: int, **fields: Any) -> Any:
    values: dict[str, Any] = {
        "to": KEY.address,
        "value": 0,
        "gas": 21_000,
        "nonce": nonce,
        "chainId": client.eth.chain_id,
    }
    fees = {"maxFeePerGas": 3 * 10**9, "maxPriorityFeePerGas": 10**9}
    signed = KEY.sign_transaction({**values, **fees, **fields})
    return client.eth.get_transaction_receipt(client.eth.send_raw_transaction(signed.raw_transaction))


def deploy(client: Web3) -> Any:
    factory = client.eth.contract(abi=BUILD.abi, bytecode=BUILD.bytecode)
    data = factory.constructor(KEY.address, KEY.address).data_in_transaction
    gas = client.eth.estimate_gas({"from": KEY.address, "data": data})
    receipt = send(client, 0, to=None, data=data, gas=gas)
    assert receipt["status"] == 1
    assert receipt["gasUsed"] <= gas <= 1.1 * receipt["gasUsed"]
    return client.eth.contract(address=receipt["contractAddress"], abi=BUILD.abi)


def test_only_the_funded_own_ether(client: Web3) -> None:
    assert client.eth.get_balance(KEY.address) > 0
    assert list(map(str, client.eth.accounts)) == [
        "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"
    ]  # the tester's, known to everybody
    assert client.eth.get_balance(client.eth.accounts[0]) == 0


def test_blocks_bear_the_time_they_are_made(client: Web3, monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    wall = [now + 5000.0]
    monkeypatch.setattr("concilia_chain.in_process.time.time", lambda: wall[0])
    stamps = []
    for nonce, moment in enumerate([5000, 5000, 5000, 5001, 9000, 8000]):
        wall[0] = now + moment + 0.9
        send(client, nonce)
        stamps.append(client.eth.get_block("latest")["timestamp"] - now)
    # As many blocks as there are in one second, and never back.
    assert stamps == [5000, 5000, 5000, 5001, 9000, 9000]


def test_a_dry_run_sees_the_time_of_now(client: Web3, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = deploy(client)
    deadline = int(time.time()) + 100
    opening = ledger.functions.openRound(b"j" * 32, 1, b"b" * 32, deadline, 1)
    opening.call({"from": KEY.address})
    monkeypatch.setattr("concilia_chain.in_process.time.time", lambda: deadline + 1.0)
    with pytest.raises(ContractCustomError) as refusal:
        opening.call({"from": KEY.address})
    assert str(refusal.value.data).startswith(Web3.keccak(text="DeadlinePassed(uint256,uint256)").to_0x_hex()[:10])
    with pytest.raises(ContractCustomError):
        opening.estimate_gas({"from": KEY.address})


def test_estimates_suffice(client: Web3) -> None:
    ledger = deploy(client)
    opening = ledger.functions.openRound(b"j" * 32, 1, b"b" * 32, int(time.time()) + 100, 1)
    gas = opening.estimate_gas({"from": KEY.address})
    receipt = send(client, 1, to=ledger.address, data=opening.build_transaction({"gas": 1})["data"], gas=gas)
    assert receipt["status"] == 1
    assert gas < 1.1 * receipt["gasUsed"]


def test_errors_are_those_of_a_node() -> None:
    stranger = Account.create().address
    client = providers.connect("eth-tester://", [KEY.address, stranger])
    ledger = deploy(client)
    with pytest.raises(ContractCustomError) as refusal:
        ledger.functions.pause().call({"from": stranger})
    selector = Web3.keccak(text="AccessControlUnauthorizedAccount(address,bytes32)").to_0x_hex()[:10]
    assert refusal.value.data == f"{selector}{stranger[2:].lower().rjust(64, '0')}{'0' * 64}"
    with pytest.raises(Web3RPCError):
        send(client, 77)


def test_many_threads(client: Web3) -> None:
    with ThreadPoolExecutor(8) as pool:
        balances = list(pool.map(lambda _: client.eth.get_balance(KEY.address), range(200)))
    assert len(set(balances)) == 1


@pytest.fixture
def nonsense() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that answers as told, and is no node."""
    told: dict[str, Any] = {"status": 200, "body": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(told["status"])
            self.send_header("Content-Length", str(len(told["body"])))
            self.end_headers()
            self.wfile.write(told["body"])

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", told
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>welcome</html>"),
        (200, b""),
        (200, b"[]"),
        (502, b"bad gateway"),
        (200, json.dumps({"jsonrpc": "2.0", "id": 0, "error": {"code": -32603, "message": "inner"}}).encode()),
    ],
)
def test_a_node_that_answers_nonsense(nonsense: tuple[str, dict[str, Any]], status: int, body: bytes) -> None:
    url, told = nonsense
    told.update(status=status, body=body)
    with pytest.raises(ChainUnavailable), answered():
        _ = providers.connect(url, []).eth.block_number


def test_a_node_that_is_not_there(free_port: Any) -> None:
    with pytest.raises(ChainUnavailable), answered():
        _ = providers.connect(f"http://127.0.0.1:{free_port()}", []).eth.block_number


def test_with_a_node_no_evm_is_read() -> None:
    script = (
        "import sys, concilia_chain.main as main; main.providers.connect('http://127.0.0.1:1', []); "
        "assert not {'eth', 'eth_tester', 'py_ecc'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

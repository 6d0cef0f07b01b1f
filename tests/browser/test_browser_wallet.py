"""The wallet stand-in refuses what MetaMask refuses, and signs what the contract accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from concilia_kit import signing
from concilia_kit.roles import Role
from eth_account import Account

from .wallet import Wallet

CHAIN = 1337
NAME = "io.metamask"


def made() -> Wallet:
    wallet = Wallet(Account.create(), CHAIN)
    wallet.answer(NAME, "eth_requestAccounts", [])
    return wallet


def code(answer: dict[str, Any]) -> int:
    found: int = answer["error"]["code"]
    return found


def role_change(chain: int) -> tuple[signing.RoleChange, signing.Domain, str]:
    """A role change, where it is valid, and the document that a page hands to a wallet for it."""
    account = Account.create().address
    change = signing.RoleChange(role=Role.AUDITOR, account=account, granted=True, nonce=3, deadline=2_000_000_000)
    domain = signing.Domain(chain_id=chain, contract=Account.create().address)
    fields = [("role", "bytes32"), ("account", "address"), ("granted", "bool"), ("nonce", "uint256")]
    named = [("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address")]
    document = {
        "domain": domain.typed(),
        "primaryType": "RoleChange",
        "types": {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind in named],
            "RoleChange": [{"name": name, "type": kind} for name, kind in [*fields, ("deadline", "uint256")]],
        },
        "message": {
            "role": "0x" + Role.AUDITOR.identifier.hex(),
            "account": account,
            "granted": True,
            "nonce": "3",
            "deadline": "2000000000",
        },
    }
    return change, domain, json.dumps(document)


def test_typed_data_is_signed_as_the_contract_reads_it() -> None:
    wallet = made()
    change, domain, document = role_change(CHAIN)
    answer = wallet.answer(NAME, "eth_signTypedData_v4", [wallet.key.address, document])
    assert answer["result"] == signing.sign(change, domain, wallet.key)


def test_typed_data_for_another_network_than_the_active_one_is_refused() -> None:
    wallet = made()
    _, _, document = role_change(CHAIN + 1)
    answer = wallet.answer(NAME, "eth_signTypedData_v4", [wallet.key.address, document])
    assert code(answer) == -32603
    wallet.switch(CHAIN + 1)
    assert "result" in wallet.answer(NAME, "eth_signTypedData_v4", [wallet.key.address, document])


def test_nothing_is_signed_for_an_account_that_is_not_shown() -> None:
    wallet = made()
    text = "0x" + b"hello".hex()
    assert code(wallet.answer(NAME, "personal_sign", [text, Account.create().address])) == 4100
    wallet.lock()
    assert code(wallet.answer(NAME, "personal_sign", [text, wallet.key.address])) == 4100
    assert wallet.answer(NAME, "eth_accounts", [])["result"] == []


def test_a_question_that_waits_is_not_asked_twice() -> None:
    wallet = made()
    wallet.ignore("personal_sign")
    question = ["0x00", wallet.key.address]
    assert wallet.answer(NAME, "personal_sign", question)["silence"]
    assert code(wallet.answer(NAME, "personal_sign", question)) == -32002


def test_a_refusal_is_for_one_question() -> None:
    wallet = made()
    wallet.refuse()
    question = ["0x00", wallet.key.address]
    assert wallet.answer(NAME, "eth_chainId", [])["result"] == hex(CHAIN)  # asks nobody, so nobody refuses
    assert code(wallet.answer(NAME, "personal_sign", question)) == 4001
    assert "result" in wallet.answer(NAME, "personal_sign", question)


@pytest.fixture
def node() -> Iterator[str]:
    """An Ethereum node of chain 7, as far as a wallet asks when it is to add one."""

    class Node(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": "0x7"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Node) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def chain_of(url: str, chain_id: str = "0x7") -> list[dict[str, Any]]:
    currency = {"name": "Ether", "symbol": "ETH", "decimals": 18}
    return [{"chainId": chain_id, "chainName": "Seven", "rpcUrls": [url], "nativeCurrency": currency}]


def test_a_network_is_added_once_its_node_says_that_it_is_that_one(node: str) -> None:
    wallet = made()
    assert code(wallet.answer(NAME, "wallet_switchEthereumChain", [{"chainId": "0x7"}])) == 4902
    answer = wallet.answer(NAME, "wallet_addEthereumChain", chain_of(node))
    assert answer["result"] is None
    assert answer["events"] == [["chainChanged", "0x7"]]
    assert wallet.answer(NAME, "eth_chainId", [])["result"] == "0x7"


@pytest.mark.parametrize("chain_id", ["0x8", "0x07", "7", "0x0"], ids=["another", "padded", "decimal", "none"])
def test_a_network_that_is_not_what_it_is_said_to_be_is_refused(node: str, chain_id: str) -> None:
    wallet = made()
    assert code(wallet.answer(NAME, "wallet_addEthereumChain", chain_of(node, chain_id))) == -32602
    assert wallet.chain == CHAIN


@pytest.mark.parametrize("url", ["http://node.example/", "ftp://127.0.0.1/", "http://127.0.0.1:1/"])
def test_a_network_whose_node_cannot_be_asked_safely_is_refused(url: str) -> None:
    wallet = made()
    assert code(wallet.answer(NAME, "wallet_addEthereumChain", chain_of(url))) == -32602

"""The door to the node as a wallet uses it, on an EVM within the process or on a node."""

from __future__ import annotations

import json
from typing import Any

import pytest
from concilia_kit.roles import Role
from eth_account import Account


async def ask(consortium: Any, method: str, *params: Any) -> Any:
    answer = await said(consortium, {"jsonrpc": "2.0", "id": 7, "method": method, "params": list(params)})
    assert answer.keys() == {"jsonrpc", "id", "result"}, answer
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", 7)
    return answer["result"]


async def said(consortium: Any, body: Any) -> Any:
    answer = await consortium.http.post("/v1/rpc", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


async def test_a_wallet_is_given_the_chain(consortium: Any) -> None:
    """MetaMask asks these two of an address before it adds it, and compares the first with what it was told."""
    assert await ask(consortium, "eth_chainId") == hex(consortium.info.chain_id)
    assert await ask(consortium, "net_version") == str(consortium.info.chain_id)


async def test_what_a_wallet_asks_all_day(consortium: Any) -> None:
    client, admin = consortium.client, consortium.admin.address.lower()
    stranger = Account.create().address
    assert int(await ask(consortium, "eth_blockNumber"), 16) == client.eth.block_number
    assert int(await ask(consortium, "eth_getBalance", admin, "latest"), 16) == client.eth.get_balance(
        consortium.admin.address
    )
    assert await ask(consortium, "eth_getBalance", stranger) == "0x0"
    assert await ask(consortium, "eth_getTransactionCount", stranger, "pending") == "0x0"
    code = await ask(consortium, "eth_getCode", consortium.info.address, "latest")
    assert code == "0x" + bytes(client.eth.get_code(consortium.info.address)).hex()
    assert int(await ask(consortium, "eth_gasPrice"), 16) >= 0
    history = await ask(consortium, "eth_feeHistory", "0x1", "latest", [10, 50])
    assert int(history["oldestBlock"], 16) <= client.eth.block_number
    assert all(int(fee, 16) >= 0 for fee in history["baseFeePerGas"])
    assert await ask(consortium, "web3_clientVersion") == "Concilia/1"

    transaction = consortium.send(consortium.admin, "pause")
    number = hex(client.eth.block_number)
    block = await ask(consortium, "eth_getBlockByNumber", number, False)
    assert (block["number"], block["transactions"]) == (number, [transaction])
    assert int(block["timestamp"], 16) == client.eth.get_block("latest")["timestamp"]
    assert len(bytes.fromhex(block["logsBloom"][2:])) == 256
    receipt = await ask(consortium, "eth_getTransactionReceipt", transaction)
    assert (receipt["status"], receipt["blockNumber"], receipt["blockHash"]) == ("0x1", number, block["hash"])
    assert receipt["logs"][0]["address"].lower() == consortium.info.address.lower()
    assert receipt["logs"][0]["logIndex"] == "0x0"
    sent = await ask(consortium, "eth_getTransactionByHash", transaction)
    assert (sent["hash"], sent["from"].lower(), sent["blockNumber"]) == (transaction, admin, number)
    assert await ask(consortium, "eth_getTransactionReceipt", "0x" + "11" * 32) is None
    assert await ask(consortium, "eth_getTransactionByHash", "0x" + "11" * 32) is None


async def test_calls_and_estimates_of_people_without_ether(consortium: Any) -> None:
    stranger = Account.create().address
    ledger = consortium.info.address
    data = consortium.contract.encode_abi("hasRole", [Role.ADMIN.identifier, consortium.admin.address])
    for call in ({"to": ledger, "data": data}, {"from": stranger, "to": ledger, "input": data, "gasPrice": "0x1"}):
        assert int(await ask(consortium, "eth_call", call, "latest"), 16) == 1
    assert int(await ask(consortium, "eth_estimateGas", {"from": stranger, "to": ledger, "data": data}), 16) > 21_000

    pause = {"from": stranger, "to": ledger, "data": consortium.contract.encode_abi("pause", [])}
    for method, params in (("eth_call", [pause, "latest"]), ("eth_estimateGas", [pause])):
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        refused = (await said(consortium, body))["error"]
        assert isinstance(refused["code"], int)
        assert refused["data"].startswith("0xe2517d3f")  # AccessControlUnauthorizedAccount(address,bytes32)


@pytest.mark.parametrize(
    "method",
    [
        *("eth_sendRawTransaction", "eth_sendTransaction", "eth_accounts", "eth_sign", "eth_getLogs", "eth_newFilter"),
        *(
            "eth_subscribe",
            "personal_unlockAccount",
            "debug_traceTransaction",
            "evm_snapshot",
            "anvil_mine",
            "admin_peers",
        ),
        *("", "eth_chainid", "eth_call ", "rpc_modules"),
    ],
)
async def test_nothing_else_gets_through(consortium: Any, method: str) -> None:
    before = consortium.client.eth.block_number
    raw = consortium.admin.sign_transaction(
        {
            "to": consortium.admin.address,
            "value": 0,
            "gas": 21_000,
            "nonce": consortium.client.eth.get_transaction_count(consortium.admin.address),
            "chainId": consortium.info.chain_id,
            "maxFeePerGas": 10**11,
            "maxPriorityFeePerGas": 10**9,
        }
    ).raw_transaction
    answer = await said(consortium, {"jsonrpc": "2.0", "id": 1, "method": method, "params": ["0x" + raw.hex()]})
    assert answer["error"]["code"] == -32601
    assert consortium.client.eth.block_number == before


async def test_a_batch(consortium: Any) -> None:
    def request(id_: Any, method: str, *params: Any) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": id_, "method": method, "params": list(params)}

    batch = [
        request("a", "eth_chainId"),
        {"jsonrpc": "2.0", "method": "eth_blockNumber"},  # a notification, which wants no answer
        request(None, "eth_sendRawTransaction", "0x"),
        7,
        request(2, "eth_getBalance", "nobody", "latest"),
        request(3, "eth_blockNumber"),
    ]
    answers = await said(consortium, batch)
    assert [(each["id"], each.get("error", {}).get("code")) for each in answers] == [
        *(("a", None), (None, -32601), (None, -32600), (2, -32602), (3, None)),
    ]
    assert answers[0]["result"] == hex(consortium.info.chain_id)
    nothing = await consortium.http.post("/v1/rpc", json=[batch[1]])
    assert (nothing.status_code, nothing.content) == (204, b"")


async def test_bounds(consortium: Any) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}
    assert len(await said(consortium, [request] * 20)) == 20
    assert (await said(consortium, [request] * 21))["error"]["code"] == -32600
    assert (await said(consortium, []))["error"]["code"] == -32600
    nested = await consortium.http.post("/v1/rpc", content=b"[" * 16_000)
    assert (nested.status_code, nested.json()["error"]["code"]) == (200, -32600)
    fits = json.dumps(request).ljust(16 * 1024).encode()
    assert (await consortium.http.post("/v1/rpc", content=fits)).json()["result"] == hex(consortium.info.chain_id)
    large = await consortium.http.post("/v1/rpc", content=fits + b" ")
    assert (large.status_code, large.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 1000, b'{"id": NaN}', b"not json"])
async def test_what_is_no_json(consortium: Any, body: bytes) -> None:
    answer = await consortium.http.post("/v1/rpc", content=body)
    assert (answer.status_code, answer.json()) == (
        200,
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "this is no JSON"}},
    )

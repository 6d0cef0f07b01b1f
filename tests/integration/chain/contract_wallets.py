"""Contract wallets on a chain, honest and hostile, made by somebody's own transactions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from web3 import Web3

BUILDS = Path(__file__).parents[3] / "contracts" / "build"
SUFFIX = "6492" * 16
YES = "1626ba7e" + "00" * 28
SALT = bytes(32)

# Code of wallets and factories that mean no good, in EVM bytecode.
HOSTILE = {
    "loops for ever": "5b5f56",  # JUMPDEST, PUSH0, JUMP
    "reverts": "5f5ffd",
    "reverts with a word that means yes": f"7f{YES}5f5260205ffd",
    "answers nothing": "00",
    "breaks off": "fe",
    "says no": "7f" + "ff" * 4 + "00" * 28 + "5f5260205ff3",
    "says yes in four bytes": f"7f{YES}5f5260045ff3",
    "says yes and more": f"7f{YES}5f5260405ff3",
    "says yes with a wrong ending": "7f1626ba7e" + "00" * 27 + "01" + "5f5260205ff3",
    "answers with gigabytes": "63800000005ff3",
    "writes what it may not": f"60015f557f{YES}5f5260205ff3",  # SSTORE in a static call
    "destroys itself": "5fff",
    "calls itself for ever": "5f5f5f5f5f305af100",
}


def creation(name: str, *owner: str) -> str:
    """Creation code of a build, with the owner that its constructor takes; 0x-prefixed hexadecimal."""
    bytecode: str = json.loads((BUILDS / f"{name}.json").read_text())["bytecode"]
    return bytecode + encode(["address"] * len(owner), owner).hex()


def raw(code: str) -> str:
    """Creation code that leaves just this code."""
    size = len(code) // 2
    assert size < 256
    return f"0x60{size:02x}600a5f3960{size:02x}5ff3" + code


def personal_sign(key: LocalAccount, text: str) -> str:
    return str(key.sign_message(encode_defunct(text=text)).signature.to_0x_hex())


def wrapped(factory: str, order: bytes, inner: str) -> str:
    """A signature of a wallet that its factory has yet to make (ERC-6492)."""
    return "0x" + encode(["address", "bytes", "bytes"], [factory, order, bytes.fromhex(inner[2:])]).hex() + SUFFIX


def create_order(owner: str) -> bytes:
    """What tells a `TestWalletFactory` to make an owner's wallet."""
    return keccak(text="create(address,bytes32)")[:4] + encode(["address", "bytes32"], [owner, SALT])


def future_address(factory: str, owner: str) -> str:
    """Where that wallet will be (EIP-1014)."""
    code = keccak(bytes.fromhex(creation("TestWallet", owner)[2:]))
    return str(to_checksum_address(keccak(b"\xff" + bytes.fromhex(factory[2:]) + SALT + code)[12:]))


class Maker:
    """Puts contracts on a chain; `payer` owns ether there."""

    def __init__(self, client: Web3, payer: LocalAccount) -> None:
        self._client = client
        self._payer = payer

    def deploy(self, data: str) -> str:
        """A contract's address."""
        made = self._send({"data": data})
        return str(made["contractAddress"])

    def order(self, factory: str, order: bytes) -> None:
        """Have a factory make what it is told to."""
        self._send({"to": to_checksum_address(factory), "data": "0x" + order.hex()})

    def _send(self, fields: dict[str, Any]) -> Any:
        chain = self._client.eth
        nonce = chain.get_transaction_count(self._payer.address)
        fees = {"maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**9}
        built = {**fields, **fees, "gas": 1_500_000, "nonce": nonce, "value": 0, "chainId": chain.chain_id}
        sent = chain.send_raw_transaction(self._payer.sign_transaction(built).raw_transaction)
        receipt = chain.wait_for_transaction_receipt(sent, poll_latency=0.05)
        assert receipt["status"] == 1
        return receipt


def new_key() -> LocalAccount:
    key: LocalAccount = Account.create()
    return key

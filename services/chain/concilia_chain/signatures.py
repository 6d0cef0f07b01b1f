"""Whether an address signed something, contract wallets included: one call of the node that changes nothing.

The call runs `contracts/src/UniversalSignatureValidator.sol` as creation code that nobody deploys, and what it asks is
the wallet's own code, which anybody may have written: its gas, its time and how many run at one time are bounded, and
whatever comes of it but a clear yes is a no. Nobody's account asks, so that no wallet can tell the asker from others.
Source: ERC-1271, ERC-6492 (off-chain validation).
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from concilia_kit import logs
from concilia_kit.admission import TooBusy
from concilia_kit.wire.chain import SignatureCheck
from eth_abi.abi import encode

from concilia_chain import rpc
from concilia_chain.errors import ChainUnavailable

GAS = 3_000_000
"""Gas of a call; it has a wallet made and a P-256 key checked in Solidity."""
SECONDS = 8.0
"""How long the node may take."""
AT_ONCE = 4
"""Of the forty threads that answer requests."""

_NOBODY = "0x" + "00" * 20
_YES = "0x01"
# The node's own trouble (JSON-RPC 2.0, EIP-1474); all other errors are what became of the call.
_TROUBLE = frozenset({rpc.METHOD_NOT_FOUND, rpc.LIMIT_EXCEEDED, -32001, -32002})
_MESSAGE = 200  # characters logged
_log = logs.get(__name__)


class Node(Protocol):
    """Whoever asks the node one question in the forms of JSON-RPC, within some seconds."""

    def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:
        """The answer: an object with `result` or `error`. Raises `ChainUnavailable`."""


class Signatures:
    """`creation` is the validator's creation bytecode, 0x-prefixed hexadecimal."""

    def __init__(self, node: Node, creation: str) -> None:
        self._node = node
        self._creation = creation
        self._places = threading.BoundedSemaphore(AT_ONCE)

    def is_valid(self, check: SignatureCheck) -> bool:
        """Whether the address signed, by the chain's newest block. Raises `TooBusy`, `ChainUnavailable`."""
        arguments = encode(
            ["address", "bytes32", "bytes"],
            [check.address, bytes.fromhex(check.digest), bytes.fromhex(check.signature[2:])],
        )
        call = {"from": _NOBODY, "data": self._creation + arguments.hex(), "gas": hex(GAS)}
        if not self._places.acquire(blocking=False):
            raise TooBusy("as many signatures are being checked as may be at one time; come back a little later")
        try:
            answer = self._node.ask("eth_call", [call, "latest"], SECONDS)
        finally:
            self._places.release()
        said = answer.get("error")
        if said is None:
            return answer.get("result") == _YES
        code, message = (said.get("code"), said.get("message")) if isinstance(said, dict) else (None, said)
        if code in _TROUBLE:
            raise ChainUnavailable("the node does not run calls at the moment")
        _log.info("signature call failed", address=check.address, code=code, reason=str(message)[:_MESSAGE])
        return False

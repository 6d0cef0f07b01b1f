"""The narrow door to the node: for wallets, which want an address of the chain before they sign for it.

The node itself stays reachable by this service alone. Nothing can be sent through the door, and it holds up nothing
else: few requests at a time are let in, and each is answered within the provider's time limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from concilia_chain import rpc
from concilia_chain.errors import ChainUnavailable
from concilia_chain.rpc import Asked, Failed

CLIENT = "Concilia/1"
_AT_ONCE = 8  # of the forty threads that answer requests
_MESSAGE = 200  # characters


class Node(Protocol):
    """Whoever asks the node one question in the forms of JSON-RPC, within some seconds."""

    def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:
        """The answer: an object with `result` or `error`. Raises `ChainUnavailable`."""


class Door:
    """Answers bodies of JSON-RPC 2.0. What never changes about the chain it says itself."""

    def __init__(self, node: Node, chain_id: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._seconds = seconds
        self._clock = clock
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        # A network id of its own is of no use (EIP-155 knows none), and nodes invent one.
        self._own = {"eth_chainId": hex(chain_id), "net_version": str(chain_id), "web3_clientVersion": CLIENT}

    def answer(self, body: bytes) -> dict[str, Any] | list[dict[str, Any]] | None:
        """The answer to one body, a list to a batch; None where only notifications came. Never raises."""
        message = rpc.read(body)
        until = self._clock() + self._seconds
        answers = [self._one(request, until) for request in message.requests]
        if message.is_batch:
            return answers or None
        return answers[0] if answers else None

    def _one(self, request: Asked | Failed, until: float) -> dict[str, Any]:
        if isinstance(request, Failed):
            return rpc.error(request)
        if request.method in self._own:
            return rpc.result(request.id, self._own[request.method])
        if not self._places.acquire(blocking=False):
            return rpc.error(Failed(request.id, rpc.LIMIT_EXCEEDED, "too many ask at once; ask again in a moment"))
        try:
            left = until - self._clock()
            if left <= 0:
                raise ChainUnavailable("the node did not answer in time")
            return _told(request, self._node.ask(request.method, request.params, left))
        except ChainUnavailable as failure:
            return rpc.error(Failed(request.id, rpc.INTERNAL_ERROR, failure.detail))
        finally:
            self._places.release()


def _told(request: Asked, answer: dict[str, Any]) -> dict[str, Any]:
    """A node's answer under the asker's id; of an error what the standards know."""
    said = answer.get("error")
    if said is None:
        return rpc.result(request.id, answer.get("result"))
    if not isinstance(said, dict) or not isinstance(said.get("code"), int):
        return rpc.error(Failed(request.id, rpc.INTERNAL_ERROR, "the node's answer makes no sense"))
    data = said.get("data")
    if isinstance(data, dict):  # Ganache
        data = data.get("result")
    failed = Failed(request.id, said["code"], str(said.get("message"))[:_MESSAGE])
    return rpc.error(failed, data if isinstance(data, str) else None)

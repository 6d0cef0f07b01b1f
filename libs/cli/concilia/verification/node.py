"""An Ethereum node over plain JSON-RPC: the few reads that a verification needs.

Source: Ethereum execution APIs (JSON-RPC). Logs are asked for in bounded ranges, which shrink where a node says that a
range is too much for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import httpx
from concilia_kit.http import TIMEOUT
from concilia_kit.problems import Problem
from pydantic_core import from_json

RANGE = 2000
"""Blocks asked for at once; what public nodes commonly allow."""

_TRIES = 4
_PAUSE = 0.3  # seconds, doubled at each try


class NodeProblem(Problem):
    """The node answers with an error, or not at all."""

    status = 503
    code = "node_unavailable"


class NodeRefusal(NodeProblem):
    """The node answers that it will not do this."""

    code = "node_refused"


class Node:
    """One node. Constructing it opens nothing; every method raises `NodeProblem`."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url
        self._http = httpx.Client(timeout=TIMEOUT, transport=transport)
        self._asked = 0

    @property
    def name(self) -> str:
        """SHA-256 of the address, which itself may hold a key."""
        return hashlib.sha256(self._url.encode()).hexdigest()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ask(self, method: str, *params: Any) -> Any:
        """One call's result; None where the node knows no such thing."""
        self._asked += 1
        document = self._answer({"jsonrpc": "2.0", "id": self._asked, "method": method, "params": list(params)})
        if (error := document.get("error")) is not None:
            message = error.get("message") if isinstance(error, dict) else error
            raise NodeRefusal(f"the node answers {method} with an error: {str(message)[:200]}")
        return document.get("result")

    def chain_id(self) -> int:
        """The chain's id."""
        return self._number(self.ask("eth_chainId"))

    def head(self) -> int:
        """The newest block's number."""
        return self._number(self.ask("eth_blockNumber"))

    def block(self, number: int) -> dict[str, Any]:
        """A block with its transactions' hashes."""
        found = self.ask("eth_getBlockByNumber", hex(number), False)
        if not isinstance(found, dict):
            raise NodeProblem(f"the node has no block {number}")
        return found

    def code_exists(self, address: str, block: int | None = None) -> bool:
        """Whether a contract lives at an address now, or lived there at a block."""
        code = self.ask("eth_getCode", address, "latest" if block is None else hex(block))
        return len(str(code or "").removeprefix("0x")) > 0

    def view(self, address: str, data: str, block: int) -> bytes:
        """What a call would return in a block's state. Raises `NodeRefusal` where it reverts."""
        answer = self.ask("eth_call", {"to": address, "data": data}, hex(block))
        return bytes.fromhex(str(answer).removeprefix("0x"))

    def calldata(self, transaction: str) -> str:
        """A transaction's calldata, 0x-prefixed hexadecimal."""
        found = self.ask("eth_getTransactionByHash", transaction)
        if not isinstance(found, dict):
            raise NodeProblem(f"the node has no transaction {transaction}, whose logs it showed")
        return str(found.get("input", found.get("data")))

    def receipts(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        """A block's receipts in order, of transactions as `block` lists them."""
        return [self.ask("eth_getTransactionReceipt", transaction) for transaction in block["transactions"]]

    def logs(
        self, first: int, last: int, topics: Sequence[str | None], address: str | None
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Logs from block `first` to block `last`, range by range in order: each range's last block, and its logs.

        From a node that tells no logs, not even of one block, they are read from the blocks' receipts.
        """
        wanted: dict[str, Any] = {"topics": list(topics)} if topics else {}
        if address is not None:
            wanted["address"] = address
        step, tells_logs = RANGE, True
        while first <= last:
            end = min(first + step - 1, last) if tells_logs else first
            try:
                asked = wanted | {"fromBlock": hex(first), "toBlock": hex(end)}
                found = self.ask("eth_getLogs", asked) if tells_logs else self._logs_of(first, topics, address)
            except NodeRefusal:
                if not tells_logs:
                    raise
                step, tells_logs = max(1, (end - first + 1) // 2), end > first
                continue
            yield end, sorted(found, key=lambda log: (self._number(log["blockNumber"]), self._number(log["logIndex"])))
            first, step = end + 1, min(RANGE, step * 2)

    def _logs_of(self, number: int, topics: Sequence[str | None], address: str | None) -> list[dict[str, Any]]:
        return [
            log
            for receipt in self.receipts(self.block(number))
            for log in receipt["logs"]
            if address is None or str(log["address"]).lower() == address.lower()
            if all(want in (None, told) for want, told in zip_longest(topics, log["topics"][: len(topics)]))
        ]

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE * 2**attempt)
            try:
                answer = self._http.post(self._url, json=question)
                document = from_json(answer.content)
            except httpx.TransportError as error:
                fault = f"does not answer ({type(error).__name__})"
            except ValueError:
                fault = f"gives no JSON (HTTP {answer.status_code})"
            else:
                if isinstance(document, dict) and document.keys() & {"result", "error"}:
                    return document
                fault = f"gives no JSON-RPC answer (HTTP {answer.status_code})"
        # not the whole address: it may hold a key
        raise NodeProblem(f"the node at {httpx.URL(self._url).host} {fault}")

    @staticmethod
    def _number(value: Any) -> int:
        try:
            return int(str(value), 16)
        except ValueError as error:
            raise NodeProblem(f"the node's answer is no number: {str(value)[:40]!r}") from error

"""Ganache and Anvil as processes of their own, each at the Shanghai fork with a block for each transaction."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
CHAIN_ID = 1337
START_SECONDS = 60.0
RECEIPT_SECONDS = 120.0
_TOGETHER = 200  # questions in one HTTP request

_GANACHE = ROOT / "benchmarks" / "node_modules" / ".bin" / "ganache"
_ANVIL = ROOT / "contracts" / "node_modules" / ".bin" / "anvil"
_COMMANDS = {
    "ganache": (
        *(str(_GANACHE), "--chain.chainId", str(CHAIN_ID), "--chain.networkId", str(CHAIN_ID)),
        *("--chain.hardfork", "shanghai", "--wallet.deterministic", "--logging.quiet"),
        *("--server.host", "127.0.0.1", "--server.port"),
    ),
    "anvil": (
        *(str(_ANVIL), "--chain-id", str(CHAIN_ID), "--hardfork", "shanghai", "--silent"),
        *("--host", "127.0.0.1", "--port"),
    ),
}
NAMES = tuple(_COMMANDS)


class Node:
    """A node's JSON-RPC over one kept connection."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self._http = http
        self._numbers = itertools.count(1)

    def ask(self, method: str, *parameters: Any) -> Any:
        """One question. Raises `RuntimeError` where the node answers with an error."""
        return _result(self._post(self._question(method, parameters)))

    def ask_many(self, questions: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Many questions in few requests; the answers in the questions' order."""
        found: list[Any] = []
        for at in range(0, len(questions), _TOGETHER):
            asked = [self._question(*each) for each in questions[at : at + _TOGETHER]]
            answers = {each["id"]: each for each in self._post(asked)}
            found += [_result(answers[each["id"]]) for each in asked]
        return found

    def receipts(self, transactions: Sequence[str]) -> list[dict[str, Any]]:
        """The receipts of transactions once all are in blocks. Raises `RuntimeError` where one failed."""
        found: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + RECEIPT_SECONDS
        while missing := [each for each in transactions if each not in found]:
            answers = self.ask_many([("eth_getTransactionReceipt", (each,)) for each in missing])
            found |= {each: answer for each, answer in zip(missing, answers, strict=True) if answer}
            if len(found) < len(transactions):
                time.sleep(0.002)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(missing)} transactions are in no block after {RECEIPT_SECONDS:.0f} s")
        if failed := [each for each in transactions if found[each]["status"] != "0x1"]:
            raise RuntimeError(f"the contract refused {len(failed)} of {len(transactions)} transactions")
        return [found[each] for each in transactions]

    def _question(self, method: str, parameters: Sequence[Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": list(parameters)}

    def _post(self, body: Any) -> Any:
        return self._http.post(self.url, json=body).raise_for_status().json()


def _result(answer: dict[str, Any]) -> Any:
    if "error" in answer:
        raise RuntimeError(f"the node answers with an error: {answer['error']}")
    return answer["result"]


@contextlib.contextmanager
def running(name: str) -> Iterator[Node]:
    """A fresh node by its name, gone afterwards. Raises `RuntimeError` where it is not installed or does not start."""
    command = _COMMANDS[name]
    if not Path(command[0]).exists():
        raise RuntimeError(f"{name} is not installed; `make bench-chain` sees to it")
    port = free_port()
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(timeout=RECEIPT_SECONDS) as http:
            node = Node(f"http://127.0.0.1:{port}", http)
            _await_start(name, node, process)
            yield node
    finally:
        process.terminate()
        process.wait(20)


def _await_start(name: str, node: Node, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if int(node.ask("eth_chainId"), 16) != CHAIN_ID:
                raise RuntimeError(f"{name} runs on another chain than it was told to")
            return
        time.sleep(0.1)
    raise RuntimeError(f"{name} did not start")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

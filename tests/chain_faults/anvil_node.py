"""A real Anvil that mines only when told, and the block producer that tells it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
CHAIN_ID = 1337
GWEI = 10**9
BLOCK_SECONDS = 0.25
PATIENCE = 5


def binary() -> str:
    """The Anvil that npm's @foundry-rs/anvil brought for this platform, else the one on PATH."""
    packaged = sorted((ROOT / "contracts" / "node_modules" / "@foundry-rs").glob("anvil-*/bin/anvil*"))
    found = str(packaged[0]) if packaged else shutil.which("anvil")
    assert found, "no anvil: run 'npm --prefix contracts ci', or install Foundry"
    return found


def until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """Wait for a condition to be true, and return what it gave.

    Fails the test where it does not come true in several times the seconds that it takes on a machine that is not busy.
    """
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.05)
    return value


class Anvil:
    """One chain. `rpc` goes straight to it, past every fault."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._ids = itertools.count()
        self._http = httpx.Client(base_url=self.url, timeout=30)
        command = [binary(), "--port", str(port), "--chain-id", str(CHAIN_ID), "--hardfork", "shanghai"]
        self._process = subprocess.Popen([*command, "--base-fee", str(GWEI), "--no-mining", "--silent"])
        until(self._answers, 20, "Anvil answers")

    def _answers(self) -> bool:
        try:
            return bool(self.rpc("eth_chainId"))
        except httpx.TransportError:
            return False

    def rpc(self, method: str, *params: Any) -> Any:
        """One call's result. Fails the test where the node says no."""
        (result,) = self.rpcs([(method, list(params))])
        return result

    def rpcs(self, calls: list[tuple[str, list[Any]]]) -> list[Any]:
        """Several calls' results, in one request."""
        if not calls:
            return []
        asked = [{"jsonrpc": "2.0", "id": next(self._ids), "method": each, "params": params} for each, params in calls]
        answers = {answer["id"]: answer for answer in self._http.post("/", json=asked).json()}
        for question in asked:
            assert "error" not in answers[question["id"]], (question, answers[question["id"]]["error"])
        return [answers[question["id"]]["result"] for question in asked]

    def head(self) -> int:
        return int(self.rpc("eth_blockNumber"), 16)

    def pool(self, address: str) -> list[dict[str, Any]]:
        """An account's transactions that wait for a block, in the order of their nonces."""
        content = self.rpc("txpool_content")
        found = [
            transaction
            for kind in ("pending", "queued")
            for sender, of_sender in content[kind].items()
            if sender.lower() == address.lower()
            for transaction in of_sender.values()
        ]
        return sorted(found, key=lambda transaction: int(transaction["nonce"], 16))

    def stop(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()


class Miner:
    """Makes a block every quarter of a second at a base fee that the test sets, unless paused."""

    def __init__(self, anvil: Anvil) -> None:
        self.base_fee = GWEI
        self._anvil = anvil
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="miner", daemon=True)
        self._thread.start()
        self._running.set()

    def pause(self) -> None:
        """No block comes any more once this returned."""
        self._running.clear()
        with self._lock:
            pass

    def resume(self) -> None:
        self._running.set()

    def mine(self, blocks: int = 1) -> None:
        """Make blocks at once, with what waits for one in the first."""
        with self._lock:
            self._mine(blocks)

    def stop(self) -> None:
        self._stopping.set()
        self._running.set()
        self._thread.join()

    def _mine(self, blocks: int) -> None:
        block: list[tuple[str, list[Any]]] = [
            ("anvil_setNextBlockBaseFeePerGas", [hex(self.base_fee)]),
            ("evm_mine", []),
        ]
        for _ in range(blocks):
            self._anvil.rpcs(block)

    def _run(self) -> None:
        while not self._stopping.wait(BLOCK_SECONDS):
            self._running.wait()
            with self._lock:
                if self._running.is_set() and not self._stopping.is_set():
                    self._mine(1)

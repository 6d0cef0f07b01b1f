"""The chain service's journeys and refusals on real nodes: what passes in-process passes on Ganache and on Anvil."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from .conftest import ROOT, free_port

NODES = {
    "ganache": [
        "trufflesuite/ganache:v7.9.2",
        *("--chain.chainId", "1337", "--chain.networkId", "1337", "--chain.hardfork", "shanghai", "--logging.quiet"),
    ],
    "anvil": ["ghcr.io/foundry-rs/foundry:latest", "anvil --host 0.0.0.0 --chain-id 1337 --hardfork shanghai --silent"],
}
SUITE = ("test_chain_door.py", "test_chain_journeys.py", "test_chain_records.py", "test_chain_refusals.py")


@contextlib.contextmanager
def running(node: str) -> Iterator[str]:
    """The URL of a fresh node in a container."""
    port, name = free_port(), f"concilia-test-{node}"
    subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)
    started = ["docker", "run", "-d", "--rm", "--name", name, "-p", f"127.0.0.1:{port}:8545", *NODES[node]]
    subprocess.run(started, check=True, capture_output=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            if _answers(url):
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"{node} did not answer within 20 s")
        yield url
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)


def _answers(url: str) -> bool:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}).encode()
    try:
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=2) as answer:
            return bool(json.load(answer)["result"])
    except OSError:
        return False


def suite(node: str) -> subprocess.CompletedProcess[str]:
    files = [str(ROOT / "tests" / "integration" / "chain" / name) for name in SUITE]
    with running(node) as url:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *files],
            cwd=ROOT,
            env={**os.environ, "CONCILIA_TEST_RPC_URL": url},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )


@pytest.fixture(scope="module")
def suites() -> Iterator[Mapping[str, Future[subprocess.CompletedProcess[str]]]]:
    """The suite on every node, at the same time: each mostly waits for blocks."""
    with ThreadPoolExecutor(len(NODES)) as pool:
        yield {node: pool.submit(suite, node) for node in NODES}


@pytest.mark.parametrize("node", sorted(NODES))
def test_the_suite_passes_on_a_real_node(
    suites: Mapping[str, Future[subprocess.CompletedProcess[str]]], node: str
) -> None:
    done = suites[node].result()
    print(done.stdout[-300:])
    assert done.returncode == 0, done.stdout[-4000:]
    assert " skipped" not in done.stdout

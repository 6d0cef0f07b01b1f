"""The chain service's journeys and refusals on real nodes: what passes in-process passes on Ganache and on Anvil."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

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


@pytest.fixture(params=sorted(NODES))
def rpc_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh node in a container."""
    port, name = free_port(), f"concilia-test-{request.param}"
    subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)
    started = ["docker", "run", "-d", "--rm", "--name", name, "-p", f"127.0.0.1:{port}:8545", *NODES[request.param]]
    subprocess.run(started, check=True, capture_output=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            if _answers(url):
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"{request.param} did not answer within 20 s")
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


def test_the_suite_passes_on_a_real_node(rpc_url: str) -> None:
    files = [str(ROOT / "tests" / "integration" / "chain" / name) for name in SUITE]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files],
        cwd=ROOT,
        env={**os.environ, "CONCILIA_TEST_RPC_URL": rpc_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    print(done.stdout[-300:])
    assert done.returncode == 0, done.stdout[-4000:]
    assert " skipped" not in done.stdout

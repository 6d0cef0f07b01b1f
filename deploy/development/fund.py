"""Gives the relay's address ether from an account that a development node holds unlocked; `fund.py RPC_URL KEYSTORE`.

Only the address is read from the keystore. An address that has enough is left alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx

ETHER = 10**18
ENOUGH, GIFT = 10 * ETHER, 500 * ETHER


def main(rpc_url: str, keystore: str) -> int:
    """The exit code."""
    address = "0x" + json.loads(Path(keystore).read_text())["address"].removeprefix("0x")
    with httpx.Client(base_url=rpc_url, timeout=20) as node:

        def ask(method: str, *params: Any) -> Any:
            answer = node.post("", json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).json()
            if "error" in answer:
                raise SystemExit(f"{method}: {answer['error']['message']}")
            return answer["result"]

        balance = int(ask("eth_getBalance", address, "latest"), 16)
        if balance < ENOUGH:
            ask("eth_sendTransaction", {"from": ask("eth_accounts")[0], "to": address, "value": hex(GIFT)})
            balance = int(ask("eth_getBalance", address, "latest"), 16)
    print(f"the relay {address} has {balance / ETHER:.1f} ether")  # noqa: T201 - its output
    return 0 if balance >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

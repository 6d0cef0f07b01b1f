"""The way to an EVM by URL: JSON-RPC over HTTP, or an EVM within this process that behaves like such a node."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any, Protocol, cast

import requests
from web3 import HTTPProvider, Web3
from web3.middleware import ExtraDataToPOAMiddleware
from web3.providers.rpc.utils import ExceptionRetryConfiguration
from web3.types import RPCEndpoint, RPCResponse

from concilia_chain.errors import ChainUnavailable

# Seconds to connect, to answer. Ganache was seen to leave one estimate in a hundred unanswered; the next one comes.
_TIMEOUT = (5.0, 10.0)
ANSWER_SECONDS = _TIMEOUT[1]
"""The longest that a node is waited for."""
_MAX_ANSWER = 4 * 1024 * 1024  # bytes; a full block's list of transactions has a tenth of it


class Node(Protocol):
    """What answers questions as they come, in the forms of JSON-RPC."""

    def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:
        """One question as it is and once, for those who cannot wait for repetitions. Raises `ChainUnavailable`."""
        ...


def connect(rpc_url: str, funded: Iterable[str]) -> Web3:
    """A client for the chain at a URL; opens no connection.

    Calls raise `ChainUnavailable` where the node does not answer. `funded` are the addresses that own ether from the
    first block of an EVM within this process; elsewhere they are funded by whoever runs the chain.
    """
    if rpc_url.startswith("eth-tester://"):
        # A development machine of its own, and a third of what this service reads before it starts: not for nodes.
        from concilia_chain import in_process

        return Web3(in_process.provider(funded))
    client = Web3(NodeProvider(rpc_url))
    # Permissioned chains (Clique, IBFT, QBFT) put their validators' seals where Ethereum allows 32 bytes.
    client.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
    return client


def node(client: Web3) -> Node:
    """What `connect` connected a client with."""
    return cast(Node, client.provider)


class NodeProvider(HTTPProvider):
    """JSON-RPC over HTTP; a node that does not answer is a `ChainUnavailable`."""

    def __init__(self, url: str) -> None:
        super().__init__(
            url,
            request_kwargs={"timeout": _TIMEOUT},
            # web3 asks for the chain id before every call.
            cache_allowed_requests=True,
            cacheable_requests={RPCEndpoint("eth_chainId")},
            exception_retry_configuration=ExceptionRetryConfiguration(
                errors=(requests.ConnectionError, requests.Timeout), retries=3, backoff_factor=0.1
            ),
        )

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """One call. Raises `ChainUnavailable`."""
        try:
            return super().make_request(method, params)
        except (requests.RequestException, ValueError) as error:  # ValueError: an answer that is no JSON
            raise ChainUnavailable(f"the node does not answer ({type(error).__name__})") from error

    def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:
        """One question as it is and once, for those who cannot wait for repetitions. Raises `ChainUnavailable`."""
        until = time.monotonic() + seconds
        connecting = min(_TIMEOUT[0], seconds / 2)
        question = {"jsonrpc": "2.0", "id": 0, "method": method, "params": params}
        body = b""
        try:
            with requests.post(
                str(self.endpoint_uri), json=question, timeout=(connecting, seconds - connecting), stream=True
            ) as response:
                for piece in response.iter_content(64 * 1024):
                    body += piece
                    if len(body) > _MAX_ANSWER or time.monotonic() > until:
                        raise ChainUnavailable("the node's answer is too large, or comes too slowly")
            answer = json.loads(body)
        except (requests.RequestException, ValueError, RecursionError) as error:
            raise ChainUnavailable(f"the node does not answer ({type(error).__name__})") from error
        if not isinstance(answer, dict):
            raise ChainUnavailable("the node's answer makes no sense")
        return answer

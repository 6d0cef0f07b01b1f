"""Stands between the gateway and its node, passes JSON-RPC on, and fails as networks and processes fail."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.crypto import keccak
from hexbytes import HexBytes

BROADCAST = "eth_sendRawTransaction"


class Moment(Enum):
    """When a fault strikes that is armed for a broadcast."""

    BEFORE = "signed, and the node has not got it"
    LATE = "the node gets it when the fault is over, if it is `hang`"
    AFTER = "the node has got it, and the answer is lost"


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A raw transaction that the gateway sent on its way; `forwarded` is whether the node got it."""

    raw: str
    transaction: str
    nonce: int
    max_fee: int
    forwarded: bool


class FaultyNode:
    """A proxy on one port, with the switches of its faults."""

    def __init__(self, port: int, node_url: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.calls: Counter[str] = Counter()
        self.broadcasts: list[Broadcast] = []
        self._port = port
        self._node = urlsplit(node_url).netloc
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._open = threading.Event()
        self._open.set()
        self._armed: tuple[int, Moment, Callable[[], None]] | None = None
        self.up()

    def up(self) -> None:
        """Take connections (again)."""
        assert self._server is None
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="rpc-proxy", daemon=True).start()

    def down(self) -> None:
        """Refuse connections and break off those that are open, answers under way included."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self._lock:
            for connection in self._connections:
                _break_off(connection)

    def hang(self) -> None:
        """Take every call, and neither pass it on nor answer, until `go_on`."""
        self._open.clear()

    def go_on(self) -> None:
        """Pass on what was held back, however old it is, and what comes from now on."""
        self._open.set()

    def stop(self) -> None:
        self.go_on()
        if self._server is not None:
            self.down()

    def at_broadcast(self, count: int, moment: Moment, fault: Callable[[], None]) -> threading.Event:
        """Have a fault strike at the `count`th broadcast from now on; its answer is lost, unless it comes `LATE`.

        The event is set once the fault has struck.
        """
        struck = threading.Event()

        def strike() -> None:
            fault()
            struck.set()

        with self._lock:
            self._armed = (len(self.broadcasts) + count, moment, strike)
        return struck

    def bumps(self) -> list[tuple[Broadcast, Broadcast]]:
        """Pairs of a broadcast and a later one of the same nonce at a higher fee."""
        return [
            (first, second)
            for index, first in enumerate(self.broadcasts)
            for second in self.broadcasts[index + 1 :]
            if second.nonce == first.nonce and second.max_fee > first.max_fee
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                self.upstream = http.client.HTTPConnection(node._node, timeout=30)
                with node._lock:
                    node._connections.add(self.connection)

            def finish(self) -> None:
                with node._lock:
                    node._connections.discard(self.connection)
                self.upstream.close()
                super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = node._pass_on(body, self.upstream)
                if answer is None:
                    self.close_connection = True
                    _break_off(self.connection)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nobody reads it."""

        return Handler

    def _pass_on(self, body: bytes, upstream: http.client.HTTPConnection) -> bytes | None:
        document = json.loads(body)
        requests = document if isinstance(document, list) else [document]
        strike: Callable[[], None] | None = None
        moment = Moment.AFTER
        with self._lock:
            for request in requests:
                self.calls[request["method"]] += 1
                if request["method"] == BROADCAST:
                    if self._armed is not None and self._armed[0] == len(self.broadcasts) + 1:
                        _, moment, strike = self._armed
                        self._armed = None
                    forwarded = strike is None or moment is not Moment.BEFORE
                    self.broadcasts.append(_read(request["params"][0], forwarded))
        if strike is not None and moment is not Moment.AFTER:
            strike()
            if moment is Moment.BEFORE:
                return None
        self._open.wait()
        upstream.request("POST", "/", body, {"Content-Type": "application/json"})
        answer = upstream.getresponse().read()
        if strike is not None and moment is Moment.AFTER:
            strike()
            return None
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is what this is for."""


def _read(raw: str, forwarded: bool) -> Broadcast:
    fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    return Broadcast(raw, "0x" + keccak(hexstr=raw).hex(), fields["nonce"], fields["maxFeePerGas"], forwarded)


def _break_off(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is broken off already

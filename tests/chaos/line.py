"""A TCP line between any two parties that does what lines do: wait, trickle, slice, break, go silent, be down.

It reads the heads of HTTP requests that pass, where somebody wants to know of them, and changes no byte.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

_PIECE = 64 * 1024
_LOOKED_AT = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_HEAD = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1\r\n")


class Watcher(Protocol):
    """Is told of requests as they pass, and holds the line for as long as it does not return."""

    def asked(self, line: str, method: str, path: str, so_far: bytes) -> object | None:
        """A request's first bytes came, the last of which have not been passed on. What is returned stands for it;
        for None the same is asked with more of it."""

    def answered(self, request: object, status: int) -> None:
        """The first bytes of its answer came, and have not been passed on."""


@dataclass
class Faults:
    """What is wrong with a line; may be changed while it is used.

    `latency` in seconds a piece and direction, `bandwidth` in bytes a second and direction, `slices` in bytes a write,
    `reset_every` in seconds from a connection's beginning. A `silent` line takes bytes and passes none on.
    """

    latency: float = 0.0
    bandwidth: float = 0.0
    slices: int = 0
    reset_every: float = 0.0
    silent: bool = False


@dataclass(eq=False)
class Line:
    """From a port of its own on loopback to another port."""

    name: str
    port: int
    to: int
    faults: Faults = field(default_factory=Faults)
    watcher: Watcher | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.carried = [0, 0]
        """Bytes to the other end, and back."""
        self.resets = 0
        self.up()

    @property
    def url(self) -> str:
        """Where it begins."""
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Take connections (again)."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name=f"line {self.name}", daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and reset those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.reset()

    def reset(self) -> None:
        """Reset the connections that are open."""
        with self._lock:
            broken, self._open = self._open, set()
        for each in broken:
            _reset(each)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), name=f"line {self.name}", daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        began = time.monotonic()
        try:
            far = socket.create_connection(("127.0.0.1", self.to), timeout=5)
        except OSError:
            _reset(near)
            return
        for each in (near, far):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.settimeout(None)
        if self.faults.bandwidth:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
        with self._lock:
            self._open |= {near, far}
        exchange = _Exchange(self)
        back = threading.Thread(
            target=self._pump, args=(far, near, 1, exchange, began), name=f"line {self.name}", daemon=True
        )
        back.start()
        self._pump(near, far, 0, exchange, began)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, way: int, exchange: _Exchange, began: float) -> None:
        try:
            while piece := source.recv(_PIECE):
                while self.faults.silent:
                    time.sleep(0.05)
                (exchange.back if way else exchange.forth)(piece)
                self._pass(piece, sink, way, began)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(sink)

    def _pass(self, piece: bytes, sink: socket.socket, way: int, began: float) -> None:
        if self.faults.latency:
            time.sleep(self.faults.latency)
        size = self.faults.slices or (max(1024, int(self.faults.bandwidth / 20)) if self.faults.bandwidth else _PIECE)
        for at in range(0, len(piece), size):
            if self.faults.reset_every and time.monotonic() - began > self.faults.reset_every:
                self.resets += 1
                raise ConnectionResetError
            part = piece[at : at + size]
            sink.sendall(part)
            self.carried[way] += len(part)
            if self.faults.bandwidth:
                time.sleep(len(part) / self.faults.bandwidth)


class _Exchange:
    """The requests of one connection, one after the other."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._head: re.Match[bytes] | None = None
        self._so_far = b""
        self._request: object | None = None

    def forth(self, piece: bytes) -> None:
        watcher = self._line.watcher
        if watcher is None:
            return
        if (head := _HEAD.match(piece)) is not None:
            self._head, self._so_far, self._request = head, b"", None
        if self._head is not None and self._request is None and len(self._so_far) < _LOOKED_AT:
            self._so_far += piece
            method, path = self._head[1].decode(), self._head[2].decode()
            self._request = watcher.asked(self._line.name, method, path, self._so_far)

    def back(self, piece: bytes) -> None:
        request, watcher = self._request, self._line.watcher
        if watcher is not None and request is not None and (status := _STATUS.match(piece)) is not None:
            self._head = self._request = None
            watcher.answered(request, int(status[1]))


def _reset(connection: socket.socket) -> None:
    """End a connection the hard way: the other side sees a reset, not an end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.shutdown(socket.SHUT_RD)  # wakes who reads; a word of its end would be no reset
    connection.close()

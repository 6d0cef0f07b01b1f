"""A line as hospitals have it, slow and often cut off: a TCP proxy with a rate that resets its connections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

_PIECE = 16 * 1024


class BreakingLine:
    """Passes connections on to `port`; the bytes of all of them together at `rate` bytes a second, none faster.

    Each connection is reset after `reset_seconds` or `reset_bytes` in one direction, whichever comes first; both
    sides see it. `passed` are the bytes that went towards the service, `resets` the connections that were cut off.
    """

    def __init__(
        self, port: int, *, rate: float = float("inf"), reset_seconds: float = 0.0, reset_bytes: int = 0
    ) -> None:
        self._target = port
        self._rate = rate
        self._reset_seconds = reset_seconds or float("inf")
        self._reset_bytes = reset_bytes or 2**62
        self.passed = self.resets = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for side in list(self._open):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for side in self._open:
            side.close()

    def _start(self, target: object, *given: object) -> None:
        thread = threading.Thread(target=target, args=given)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                # Little may wait on the way: what does is lost when the line breaks.
                for side in (near, far):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
                    self._open.append(side)
                began = time.monotonic()
                self._start(self._pass_on, near, far, began, True)
                self._start(self._pass_on, far, near, began, False)

    def _pass_on(self, source: socket.socket, sink: socket.socket, began: float, onward: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                if passed + len(piece) > self._reset_bytes or time.monotonic() - began > self._reset_seconds:
                    self.resets += 1
                    _reset(source, sink)
                    return
                sink.sendall(piece)
                passed += len(piece)
                self.passed += len(piece) if onward else 0
                time.sleep(len(piece) / self._rate)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _reset(*sides: socket.socket) -> None:
    """End a connection as a router does that forgot it."""
    for side in sides:
        with contextlib.suppress(OSError):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            side.shutdown(socket.SHUT_RD)
        side.close()

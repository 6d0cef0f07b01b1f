"""TLS in front of a server that speaks none: real handshakes with certificates of a deployment's own authority."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def relay(to: int, certificate: Path) -> Iterator[int]:
    """A port of loopback that proves itself by `certificate` (with its key beside it) and passes on to port `to`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_accept, args=(listening, context, to), daemon=True).start()
        yield listening.getsockname()[1]


def _accept(listening: socket.socket, context: ssl.SSLContext, to: int) -> None:
    while True:
        try:
            taken, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(taken, context, to), daemon=True).start()


def _serve(taken: socket.socket, context: ssl.SSLContext, to: int) -> None:
    """Non-blocking on the encrypted side: a thread may read from it while the other one writes, not both at once."""
    with suppress(OSError), ExitStack() as both:
        outside = both.enter_context(context.wrap_socket(taken, server_side=True))
        inside = both.enter_context(socket.create_connection(("127.0.0.1", to)))
        one = threading.Lock()
        threading.Thread(target=_outwards, args=(inside, outside, one), daemon=True).start()
        outside.setblocking(False)
        while True:
            try:
                with one:
                    data = outside.recv(65536)
            except ssl.SSLWantReadError:
                select.select([outside], [], [], 1.0)
                continue
            if not data:
                return
            inside.sendall(data)


def _outwards(inside: socket.socket, outside: ssl.SSLSocket, one: threading.Lock) -> None:
    with suppress(OSError):
        while data := inside.recv(65536):
            left = memoryview(data)
            while left:
                try:
                    with one:
                        left = left[outside.send(left) :]
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    select.select([], [outside], [], 1.0)
        outside.shutdown(socket.SHUT_RDWR)

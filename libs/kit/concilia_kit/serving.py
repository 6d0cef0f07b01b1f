"""How HTTP is read and written by every service: uvicorn on httptools, heads bounded, files sent by the kernel.

An application may answer with parts of an open file (`http.response.zerocopysend`) and has them sent by `sendfile(2)`:
the bytes go from the page cache to the socket and never through this process. This is why the loop is asyncio's own:
uvloop has no `sendfile`, and measured no faster at taking bodies in.

Source: the ASGI specification's extension "Zero Copy Send"; RFC 9112, sections 2 and 3 (limits are the recipient's).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from concilia_kit import connections
from concilia_kit.admission import TooBusy
from concilia_kit.problems import MEDIA_TYPE, Problem

ZERO_COPY = "http.response.zerocopysend"
MAX_HEAD = 64 * 1024
"""Bytes of a request's address and headers, beyond what one read from a socket brings."""

HEAD_SECONDS = 20.0
"""From a connection's beginning, or the first byte of a later request, until the request's head is whole."""
LINGER_SECONDS = 30.0
"""How long a body may go on that was answered before its end."""
UNREAD_SECONDS = 60.0
"""How long a peer may leave an answer on the line without taking any of it (`TCP_USER_TIMEOUT`, tcp(7))."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of glibc's mallopt(3)
_ARENA_MAX = -8
_KEPT = 8 * 2**20


class HeadTooSlow(Problem):
    """The request's head did not come in time (RFC 9110, section 15.5.9)."""

    status = 408
    code = "head_too_slow"


class Malformed(Problem):
    """What came is no HTTP request: a head that cannot be read, or that frames its body in no known way (RFC 9112,
    section 6.3)."""

    status = 400
    code = "request_malformed"


def config(app: ASGIApp, **given: Any) -> uvicorn.Config:
    """How a service is served; logging is the service's own affair."""
    # No service speaks WebSocket.
    return uvicorn.Config(app, log_config=None, access_log=False, http=HttpProtocol, loop="asyncio", ws="none", **given)


def keep_freed_memory() -> None:
    """Have the C library keep a few MB of what is freed, for a process that takes large bodies in.

    A body comes in pieces of 256 KB. glibc gives memory of that size back to the kernel when it is freed, and the next
    piece pays for 64 page faults: two thirds of the time that an upload takes. Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, _KEPT // 2), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, 2**20)):
            mallopt(parameter, value)


def settle_memory() -> None:
    """What a process does about its memory once, when all that it needs is loaded and it begins to serve."""
    _share_arenas()
    _spare_collections()


def give_memory_back() -> None:
    """Have the C library give the kernel what is free, but for a few MB: what many requests took at one time lies in
    between what stays, and would be kept for ever. Does nothing with another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(_KEPT))


def _share_arenas() -> None:
    """Have the C library's allocator keep two arenas, and not eight a processor, for a process with many threads.

    Python's threads take turns anyway; what each arena keeps of what was freed would add up to tens of MB. Does nothing
    with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 2)


def _spare_collections() -> None:
    """Have collections of garbage pass over all there is now: what was made at the start stays as long as the process.

    Each full one looks at some hundred thousand objects of libraries otherwise, and every request waits for it.
    """
    gc.collect()
    gc.freeze()


class HttpProtocol(HttpToolsProtocol):
    """One connection. What is neither body nor a finished head is bounded, in bytes and in seconds: the parser keeps it
    until it ends. An answer that is not taken off the line, and a body that nobody waits for any more, are bounded too.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._kept = 0
        self._in_head = self._in_body = False
        self._due: asyncio.TimerHandle | None = None
        self._application = self.app
        self.app = self._with_extensions

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection is there; one beyond `connections.most()` is refused. Its head and body are written one after
        the other, and neither waits for the other.

        asyncio sees to that for listeners that it made; for those it is given it does not know the protocol. The body
        would wait until the peer acknowledges the head, which takes Linux 40 ms (Nagle's algorithm, RFC 9293, 3.7.4).
        """
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in {socket.AF_INET, socket.AF_INET6}:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))
        super().connection_made(transport)
        if len(self.connections) > connections.most():
            self._refuse(TooBusy("the service has as many connections as it can; come back a little later"))
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone. What it held is let go of now, not when garbage is collected: bodies are large."""
        self._stop_waiting()
        super().connection_lost(exc)
        self.app = self._application
        if self.cycle is not None:
            self.cycle.body = b""  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head or a trailer that goes on for more than `MAX_HEAD` ends the connection."""
        self._kept += len(data)
        super().data_received(data)
        if self._kept > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")
        elif self._due is None and not self._in_body and (self._in_head or self._kept):
            self._wait_for_head()  # which has begun

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._kept = 0
        self._in_head, self._in_body = False, True
        self._stop_waiting()
        super().on_headers_complete()
        _hold_without_copy(self.cycle)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._kept = 0
        self._in_body = False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered. What still comes of its body is thrown away, but not for ever: the peer may read the
        answer no sooner than it has sent all of it."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self.cycle.body = b""  # type: ignore[assignment]  # what was refused unread
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._stop_waiting()
            self._due = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(Malformed(msg))

    def _wait_for_head(self) -> None:
        self._due = self.loop.call_later(HEAD_SECONDS, self._head_is_due)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _head_is_due(self) -> None:
        self._due = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_for_head()  # of the next request, while the one before is being answered
        elif self._in_head or self._kept:
            self._refuse(HeadTooSlow(f"the request's head did not come within {HEAD_SECONDS:g} s"))
        else:
            self.transport.close()  # nothing was asked

    def _refuse(self, problem: Problem) -> None:
        """Answer in place of an application, and end the connection."""
        content = json.dumps(problem.document()).encode()
        named = {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": len(content),
            "Cache-Control": "no-store",
            "Connection": "close",
            **problem.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items()).encode("ascii")
        self.transport.write(STATUS_LINE[problem.problem_status] + head + b"\r\n" + content)
        self.transport.close()

    async def _with_extensions(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("extensions", {})[ZERO_COPY] = {}
        cycle = getattr(send, "__self__", None)
        assert isinstance(cycle, RequestResponseCycle)

        async def sending(message: Message) -> None:
            if message["type"] != ZERO_COPY:
                await send(message)
                return
            if message["count"] and scope["method"] != "HEAD" and not cycle.disconnected:
                await self._send_file(cycle, message)
            if not message.get("more_body", False):
                await send({"type": "http.response.body", "body": b""})

        async def receiving() -> Message:
            message = await receive()
            _hold_without_copy(cycle)
            return message

        await self._application(scope, receiving, sending)

    async def _send_file(self, cycle: RequestResponseCycle, message: Message) -> None:
        """Raises `ValueError` for more bytes than the answer announced."""
        count: int = message["count"]
        if count > cycle.expected_content_length:
            raise ValueError("more bytes of the file than the answer's Content-Length")
        with os.fdopen(message["file"], "rb", buffering=0, closefd=False) as file:
            try:
                sent = await asyncio.get_running_loop().sendfile(self.transport, file, message["offset"], count)
            except OSError:
                sent = -1
        if sent != count:  # the peer went away, or the file shrank: the answer cannot be finished
            cycle.disconnected = True
            self.transport.close()
            return
        cycle.expected_content_length -= count


def _hold_without_copy(cycle: RequestResponseCycle) -> None:
    """uvicorn gathers a body in a bytearray and hands it on as bytes, two copies. Where nothing waits, empty bytes in
    its place become the very piece that comes, and that is handed on."""
    if not cycle.body:
        cycle.body = b""  # type: ignore[assignment]

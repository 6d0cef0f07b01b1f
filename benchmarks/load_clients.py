"""Clients that ask the same again and again, each on a connection of its own: HTTP/1.1 by hand, so that it is the
service that is measured.

Source: RFC 9112, section 6 (where an answer ends).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

ANSWER_SECONDS = 60.0
BROKEN = "broken"
"""What is counted where no answer came: a connection that ended, or silence for `ANSWER_SECONDS`."""
_MOST_HEAD = 64 * 1024
_PAUSE_SECONDS = 0.05  # after a connection that was refused or broke
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: *\S", re.IGNORECASE)
_EVENTS = re.compile(rb"\r\ncontent-type: *text/event-stream", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass
class Answers:
    """What came of one route: seconds of each answer, how many by status, and the 5xx that nobody meant."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    accidents: Counter[str] = field(default_factory=Counter)

    def quantile(self, share: float) -> float:
        """Seconds within which this share was answered; 0 where nothing was."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def add(self, status: int, head: bytes, seconds: float) -> None:
        """Count an answer. One of 500 and above that says when to come back is meant."""
        self.seconds.append(seconds)
        self.statuses[str(status)] += 1
        if status >= 500 and not _RETRY.search(head):
            self.accidents[str(status)] += 1

    def add_broken(self) -> None:
        """Count a request without an answer."""
        self.statuses[BROKEN] += 1
        self.accidents[BROKEN] += 1


async def load(url: str, request: bytes, clients: int, seconds: float) -> Answers:
    """So many clients send a request for so long; each waits for its answer before it asks again."""
    answers = Answers()
    until = time.monotonic() + seconds
    await asyncio.gather(*(_client(url, request, until, answers) for _ in range(clients)))
    return answers


async def _client(url: str, request: bytes, until: float, answers: Answers) -> None:
    address = urlsplit(url)
    writer: asyncio.StreamWriter | None = None
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if writer is None:
                    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=_MOST_HEAD)
                writer.write(request)
                status, head, goes_on = await _answer(reader, is_head=request.startswith(b"HEAD "))
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            answers.add_broken()
            goes_on = False
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            answers.add(status, head, time.monotonic() - began)
        if not goes_on and writer is not None:
            writer.transport.abort()
            writer = None
    if writer is not None:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, *, is_head: bool) -> tuple[int, bytes, bool]:
    """An answer's status and head, its body read to the end; and whether the connection may go on."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    if _EVENTS.search(head):
        await reader.readuntil(b"\n\n")  # the first event; there is no end
        return status, head, False
    if not is_head and status not in (204, 304):
        if (length := _LENGTH.search(head)) is not None:
            await _pass_over(reader, int(length[1]))
        elif _CHUNKED.search(head):
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await _pass_over(reader, size + 2)
            await reader.readuntil(b"\r\n")
        else:
            await reader.read()
            return status, head, False
    return status, head, _CLOSE.search(head) is None


async def _pass_over(reader: asyncio.StreamReader, size: int) -> None:
    while size:
        piece = await reader.read(min(size, _MOST_HEAD))
        if not piece:
            raise EOFError("the answer ended early")
        size -= len(piece)

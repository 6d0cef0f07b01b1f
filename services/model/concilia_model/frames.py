"""Messages between the service and its process of networks: a JSON document and bytes beside it, over a socket pair.

Each frame is two lengths of four bytes, big-endian, then the document, then the bytes. Nothing is read that would run
code: the other side reads pictures and files of anybody.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTHS = struct.Struct(">II")
_MAX_DOCUMENT = 2**20
_MAX_BYTES = 2**28


class FrameError(Exception):
    """The other side is gone, or sent no frame."""


def send(to: socket.socket, document: dict[str, Any], content: bytes = b"") -> None:
    """Raises `OSError`."""
    text = json.dumps(document).encode()
    to.sendall(_LENGTHS.pack(len(text), len(content)) + text)
    if content:
        to.sendall(content)


def receive(from_: socket.socket) -> tuple[dict[str, Any], bytes]:
    """The next document and its bytes. Raises `FrameError` and `OSError`."""
    text, content = _LENGTHS.unpack(_exactly(from_, _LENGTHS.size))
    if text > _MAX_DOCUMENT or content > _MAX_BYTES:
        raise FrameError("a frame of that size is none")
    try:
        document = json.loads(_exactly(from_, text))
    except ValueError as error:
        raise FrameError("no JSON") from error
    if not isinstance(document, dict):
        raise FrameError("no JSON object")
    return document, _exactly(from_, content)


def _exactly(from_: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        taken = from_.recv_into(view)
        if taken == 0:
            raise FrameError("the other side is gone")
        view = view[taken:]
    return bytes(buffer)

"""HTTP bodies in and out: a picture that never touches a disk, an artifact that may be fetched in parts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from concilia_model.errors import ImageTooLarge, ImageUnreadable, RangeNotSatisfiable, UploadInterrupted

_OVERHEAD = 16 * 2**10  # multipart's own bytes around one file


class ArtifactResponse(FileResponse):
    """A stored artifact, whole or in the ranges asked for (RFC 9110, section 14).

    `sent` is told how many bytes went out, as they go. Raises `RangeNotSatisfiable` for a `Range` that is malformed or
    outside the file.
    """

    chunk_size = 2**20

    def __init__(self, path: Path, digest: str, sent: Callable[[int], None]) -> None:
        self._sent = sent
        headers = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
        super().__init__(path, headers=headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a refusal of the range becomes a problem like any other."""

        async def send_unless_refused(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                raise RangeNotSatisfiable(
                    "the artifact does not have the range asked for",
                    headers={"Content-Range": f"bytes */{self.headers['content-length']}"},
                )
            await send(message)
            self._sent(len(message.get("body", b"")))

        await super().__call__(scope, receive, send_unless_refused)


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**40  # the body is bounded before it comes here, and a picture must not reach the disk


def announced(request: Request) -> int:
    """The `Content-Length` of a request, 0 where there is none."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


async def upload(request: Request) -> AsyncGenerator[bytes, None]:
    """A request's body as it arrives. Raises `UploadInterrupted` where the sender goes away."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise UploadInterrupted("the connection ended before the body did") from error


async def picture(request: Request, field: str, max_bytes: int) -> bytes:
    """The one file of a multipart body. Raises `ImageTooLarge`, `ImageUnreadable` and `UploadInterrupted`."""
    absent = ImageUnreadable(f"send the picture as the file '{field}' of a multipart/form-data body")
    too_large = ImageTooLarge(f"a picture may have {max_bytes} bytes at most; send a smaller one")
    if announced(request) > max_bytes + _OVERHEAD:
        raise too_large
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise absent

    async def bounded() -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in upload(request):
            size += len(chunk)
            if size > max_bytes + _OVERHEAD:
                raise too_large
            yield chunk

    try:
        form = await _InMemoryParser(request.headers, bounded(), max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise absent from error
    try:
        file = form.get(field)
        if not isinstance(file, UploadFile):
            raise absent
        content = await file.read()
    finally:
        await form.close()
    if len(content) > max_bytes:
        raise too_large
    return content

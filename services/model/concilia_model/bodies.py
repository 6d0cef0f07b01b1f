"""HTTP bodies in and out: a picture that never touches a disk, an artifact that may be fetched in parts."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from concilia_kit.serving import ZERO_COPY
from concilia_kit.storedfile import StoredFile
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from concilia_model.errors import (
    ArtifactNotFound,
    ImageTooLarge,
    ImageUnreadable,
    RangeNotSatisfiable,
    UploadInterrupted,
    UploadStalled,
)

SILENCE_SECONDS = 60.0
_SPLICE = 4 * 2**20  # bytes handed to the kernel at one time
_OVERHEAD = 16 * 2**10  # multipart's own bytes around one file


class ArtifactResponse(FileResponse):
    """A stored artifact, whole or in the ranges asked for (RFC 9110, section 14); one whole or one range is sent by the
    kernel where the server can do that and the file is not sealed.

    `sent` is told how many bytes went out, as they go. Raises `RangeNotSatisfiable` for a `Range` that is malformed or
    outside the file, `ArtifactNotFound` for a file that was there a moment ago, and `SealingKeyUnknown`.
    """

    chunk_size = 2**20

    def __init__(self, digest: str, opened: Callable[[str], StoredFile], sent: Callable[[int], None]) -> None:
        """`opened` opens the artifact of a digest."""
        self._opened = lambda: opened(digest)
        self._sent = sent
        self._kernel_sends = False
        super().__init__(digest, headers=validators(digest), media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a refusal of the range becomes a problem like any other."""
        try:
            self._file = await anyio.to_thread.run_sync(self._opened)
        except FileNotFoundError as error:
            raise ArtifactNotFound("the artifact was removed in this moment") from error
        try:
            self._kernel_sends = self._file.seal is None and ZERO_COPY in scope.get("extensions", {})
            found = self._file.stat
            self.stat_result = os.stat_result((*found[:6], self._file.size, *found[7:]))
            self.set_stat_headers(self.stat_result)
            await self._answer(scope, receive, send)
        finally:
            self._file.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:

        async def send_unless_refused(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                raise RangeNotSatisfiable(
                    "the artifact does not have the range asked for",
                    headers={"Content-Range": f"bytes */{self.headers['content-length']}"},
                )
            await send(message)
            self._sent(message["count"] if message["type"] == ZERO_COPY else len(message.get("body", b"")))

        await super().__call__(scope, receive, send_unless_refused)

    # FileResponse hands the file on in chunks that it reads from this.

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[_Reading]:  # type: ignore[override]
        yield _Reading(self._file)

    # But for these two, where the kernel does it.

    async def _handle_simple(self, send: Send, send_header_only: bool, send_pathsend: bool) -> None:
        size = int(self.headers["content-length"])
        if send_header_only or not self._kernel_sends:
            await super()._handle_simple(send, send_header_only, send_pathsend)
        else:
            await self._hand_over(send, 200, self.raw_headers, 0, size)

    async def _handle_single_range(
        self, send: Send, start: int, end: int, file_size: int, send_header_only: bool
    ) -> None:
        if send_header_only or not self._kernel_sends:
            await super()._handle_single_range(send, start, end, file_size, send_header_only)
            return
        headers = MutableHeaders(raw=list(self.raw_headers))
        headers["content-range"] = f"bytes {start}-{end - 1}/{file_size}"
        headers["content-length"] = str(end - start)
        await self._hand_over(send, 206, headers.raw, start, end)

    async def _hand_over(
        self, send: Send, status: int, headers: list[tuple[bytes, bytes]], start: int, end: int
    ) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        descriptor = self._file.descriptor
        while start < end:
            count = min(_SPLICE, end - start)
            # What is not in the page cache is read by another thread, not by the loop that waits for the kernel.
            await anyio.to_thread.run_sync(os.posix_fadvise, descriptor, start, count, os.POSIX_FADV_WILLNEED)
            await send({"type": ZERO_COPY, "file": descriptor, "offset": start, "count": count, "more_body": True})
            start += count
        await send({"type": "http.response.body", "body": b""})


class _Reading:
    """An open artifact as `FileResponse` reads it: another thread reads, and decrypts, a chunk at a time."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._at = 0

    async def seek(self, offset: int) -> None:
        self._at = offset

    async def read(self, count: int) -> bytes:
        chunk = await anyio.to_thread.run_sync(self._file.read, self._at, count)
        self._at += len(chunk)
        return chunk


def validators(digest: str) -> dict[str, str]:
    """The headers by which caches keep an artifact: it never changes."""
    return {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}


def is_held(request: Request, digest: str) -> bool:
    """Whether the caller says that it has the artifact (RFC 9110, section 13.1.2)."""
    named = {item.strip().removeprefix("W/") for item in request.headers.get("if-none-match", "").split(",")}
    return bool(named & {f'"{digest}"', "*"})


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**40  # the body is bounded before it comes here, and a picture must not reach the disk


def announced(request: Request) -> int:
    """The `Content-Length` of a request, 0 where there is none."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


async def upload(request: Request, silence: float = SILENCE_SECONDS) -> AsyncGenerator[bytes, None]:
    """A request's body as it arrives. Raises `UploadInterrupted` where the sender goes away, and `UploadStalled` where
    nothing comes for `silence` seconds."""
    body = request.stream()
    try:
        while True:
            with anyio.fail_after(silence):
                chunk = await anext(body)
            yield chunk
    except StopAsyncIteration:
        return
    except ClientDisconnect as error:
        raise UploadInterrupted("the connection ended before the body did") from error
    except TimeoutError as error:
        raise UploadStalled(f"nothing came for {silence:g} s") from error


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

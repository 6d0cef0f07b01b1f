"""Resumable uploads: begun, gone on with after a break, finished as any other artifact is.

What has come of an upload lies in its partial file; the file's size is the upload's offset, so that there is nothing
that could disagree with it. Within this process the owner's newest request takes an upload over from an older one,
which may hang on a line that is long dead; a writer in another process is not waited for, and said to be there.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread
from concilia_kit import logs
from concilia_kit.tokens import Principal

from concilia_model import tus
from concilia_model.artifacts import Incoming, PartialStore
from concilia_model.errors import (
    ArtifactMalformed,
    DigestMismatch,
    TooManyUploads,
    UploadNotFound,
    UploadTakenOver,
)
from concilia_model.service import ArtifactService, put_away
from concilia_model.store import Upload

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """An upload and how many bytes of it are here."""

    upload: Upload
    offset: int

    def headers(self) -> dict[str, str]:
        """How tus says it."""
        return tus.standing(self.offset, self.upload.length, self.upload.expires_at)


class _Turn:
    """One request's time with an upload."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()


class UploadService:
    """Uploads in parts. Every method raises `UploadNotFound` for an upload that is not the caller's."""

    def __init__(
        self, artifacts: ArtifactService, partials: PartialStore, *, at_once: int, keep_seconds: float
    ) -> None:
        """A caller may have `at_once` unfinished uploads; one is forgotten `keep_seconds` after its last request."""
        self._artifacts = artifacts
        self._store = artifacts.store
        self._partials = partials
        self._at_once = at_once
        self._keep_seconds = keep_seconds
        self._turns: dict[str, _Turn] = {}

    async def create(self, asked: tus.Creation, caller: Principal) -> Standing:
        """Begin an upload, or find the one that the caller began of the same bytes; finished where it brought them
        before. Raises `ArtifactTooLarge`, `NoSpace`, `TooManyUploads`, `DigestMismatch`.
        """
        found = await anyio.to_thread.run_sync(self._begin, asked, caller)
        if found.finished:
            return Standing(found, found.length)
        return await self.where(found.id, caller)

    async def where(self, upload: str, caller: Principal) -> Standing:
        """Where an upload stands. An older request that still writes to it is ended first, so that the answer stays
        true. One of which every byte is here is finished, as `append` does it and with its errors.
        """
        async with self._alone(upload, caller) as found:
            received = await anyio.to_thread.run_sync(self._received, found, caller)
            if received < found.length or found.finished:
                return Standing(found, received)
            async with self._resumed(upload) as incoming:
                return await anyio.to_thread.run_sync(self._settle, found, incoming, caller)

    async def append(self, upload: str, part: tus.Part, chunks: AsyncIterator[bytes], caller: Principal) -> Standing:
        """Append bytes; what comes before a break stays. The last one finishes the upload: the artifact is checked,
        stored and recorded.

        Raises `OffsetMismatch`, `UploadTooLong`, `UploadTakenOver`, `UploadLocked`, `NoSpace`, what `chunks` raises;
        and `DigestMismatch` and `ArtifactMalformed`, after which the upload is gone.
        """
        async with self._alone(upload, caller) as found:
            if found.finished:
                tus.check_part(found.length, found.length, part)
                return Standing(found, found.length)
            async with self._resumed(upload) as incoming:
                tus.check_part(incoming.size, found.length, part)
                try:
                    await self._artifacts.pours.pour(_bounded(chunks, found.length - incoming.size), incoming.write)
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(incoming.flush)
                return await anyio.to_thread.run_sync(self._settle, found, incoming, caller)

    async def end(self, upload: str, caller: Principal) -> None:
        """Forget an upload and what has come of it; the artifact of a finished one stays."""
        async with self._alone(upload, caller):
            await anyio.to_thread.run_sync(self._forget, upload)

    def sweep(self) -> int:
        """Forget what nobody went on with; how many uploads that were."""
        idle = [item.id for item in self._store.expired_uploads(self._artifacts.clock()) if item.id not in self._turns]
        for upload in idle:
            self._forget(upload)
        # Files whose records are gone: a process was killed between the two.
        for left in self._partials.forgotten(2 * self._keep_seconds):
            if left not in self._turns:
                self._partials.forget(left)
        if idle:
            _log.info("uploads expired", uploads=len(idle))
        return len(idle)

    async def sweep_for_ever(self, seconds: float) -> None:
        """`sweep` now and then."""
        while True:
            try:
                await anyio.to_thread.run_sync(self.sweep)
            except Exception as error:  # a database that is away now is there next time
                _log.warning("uploads not swept", error=type(error).__name__)
            await anyio.sleep(seconds)

    def _begin(self, asked: tus.Creation, caller: Principal) -> Upload:
        now = self._artifacts.clock()
        known = self._artifacts.known(asked.digest, caller)
        if known is not None:
            tus.check_known(known.size, asked.length)
        else:
            pending = self._store.open_uploads(caller.address, now)
            for item in pending:
                if (item.digest, item.length) == (asked.digest, asked.length):
                    return item
            if len(pending) >= self._at_once:
                raise TooManyUploads(f"{len(pending)} uploads of this caller are unfinished; go on with one or end it")
            self._partials.admit(asked.length)
        made = Upload(
            id=secrets.token_hex(16),
            owner=caller.address,
            digest=asked.digest,
            length=asked.length,
            expires_at=now + self._keep_seconds,
            finished=known is not None,
        )
        self._store.begin_upload(made)
        return made

    def _owned(self, upload: str, caller: Principal) -> Upload:
        found = self._store.upload(upload, self._artifacts.clock())
        if found is None or found.owner != caller.address:
            raise UploadNotFound("there is no such upload of this caller; begin it anew")
        return found

    def _kept(self, upload: str, caller: Principal) -> Upload:
        found = self._owned(upload, caller)
        return found if found.finished else self._keep(found)

    def _keep(self, upload: Upload) -> Upload:
        """Put its end off, unless that was done a moment ago: each time is a write to the database."""
        expires_at = self._artifacts.clock() + self._keep_seconds
        if expires_at - upload.expires_at < self._keep_seconds / 100:
            return upload
        self._store.keep_upload(upload.id, expires_at)
        return replace(upload, expires_at=expires_at)

    def _received(self, upload: Upload, caller: Principal) -> int:
        if upload.finished:
            return upload.length
        received = self._partials.received(upload.id)
        if received == 0 and self._artifacts.known(upload.digest, caller) is not None:
            self._finish(upload)  # a process was killed between storing the artifact and saying so
            return upload.length
        return received

    def _settle(self, upload: Upload, incoming: Incoming, caller: Principal) -> Standing:
        """Finish an upload of which every byte is here."""
        if incoming.size < upload.length:
            return Standing(upload, incoming.size)
        try:
            self._artifacts.take(incoming, upload.digest, caller)
        except (DigestMismatch, ArtifactMalformed):
            self._forget(upload.id)
            raise
        return Standing(self._finish(upload), upload.length)

    def _finish(self, upload: Upload) -> Upload:
        finished = replace(upload, expires_at=self._artifacts.clock() + self._keep_seconds, finished=True)
        self._store.keep_upload(finished.id, finished.expires_at, finished=True)
        self._partials.forget(finished.id)
        return finished

    def _forget(self, upload: str) -> None:
        self._store.forget_upload(upload)
        self._partials.forget(upload)

    @asynccontextmanager
    async def _resumed(self, upload: str) -> AsyncIterator[Incoming]:
        async with put_away(await anyio.to_thread.run_sync(self._partials.resume, upload)) as incoming:
            yield incoming

    @asynccontextmanager
    async def _alone(self, upload: str, caller: Principal) -> AsyncIterator[Upload]:
        """The caller's upload, taken over from whoever has it in this process. Raises `UploadTakenOver` when another
        request does so."""
        await anyio.to_thread.run_sync(self._owned, upload, caller)
        mine, before = _Turn(), self._turns.get(upload)
        self._turns[upload] = mine
        try:
            if before is not None:
                before.scope.cancel()
                with anyio.CancelScope(shield=True):
                    await before.over.wait()
            with mine.scope:
                # As it is now: the one before may just have finished it.
                yield await anyio.to_thread.run_sync(self._kept, upload, caller)
            if mine.scope.cancelled_caught:
                raise UploadTakenOver("a newer request goes on with this upload")
        finally:
            mine.over.set()
            if self._turns.get(upload) is mine:
                del self._turns[upload]


async def _bounded(chunks: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """The chunks as long as they are `size` bytes together. Raises `UploadTooLong`."""
    came = 0
    async for chunk in chunks:
        came += len(chunk)
        tus.check_end(came, size)
        yield chunk

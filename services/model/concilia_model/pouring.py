"""From a socket's chunks to a file's writes: gathered until a trip to another thread is worth it, one batch ahead.

While one batch is hashed and written the next one arrives; no more than these two are held. Batches are large where few
files come at one time, and small where many do, so that all of them take a bounded memory. A writer that is slow is
waited for, which stops the reading, and so the sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread

from concilia_model.incoming import Chunk

BATCH = 2**18
"""Bytes handed to a worker thread at one time, where many files come."""
LARGE_BATCH = 2**20
"""The same where few do: of one file of 94 MB, trips to another thread are a fifth of the time at `BATCH`."""
_TOGETHER = 2 * LARGE_BATCH  # of all files, until each has no more than `BATCH`

Write = Callable[[list[Chunk]], None]


class Pours:
    """All that is under way, which share their memory. For one event loop."""

    def __init__(self) -> None:
        self._under_way = 0

    async def pour(self, chunks: AsyncIterator[bytes], write: Write) -> None:
        """Hand every chunk to `write`, in order, in a worker thread. Copies nothing.

        Where `chunks` ends with an error, or the task is cancelled, what came until then is written before that goes
        on. Raises what `write` raises; nothing is written after that.
        """
        self._under_way += 1
        try:
            await self._pour(chunks, _Writes(write))
        finally:
            self._under_way -= 1

    async def _pour(self, chunks: AsyncIterator[bytes], writes: _Writes) -> None:
        batch: list[Chunk] = []
        size = 0
        try:
            async for chunk in chunks:
                batch.append(chunk)
                size += len(chunk)
                if size >= min(LARGE_BATCH, max(BATCH, _TOGETHER // self._under_way)):
                    await writes.hand_over(batch)
                    batch, size = [], 0
        finally:
            with anyio.CancelScope(shield=True):
                await writes.hand_over(batch)
                await writes.settle()


class _Writes:
    """At most one write under way."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._under_way: asyncio.Task[None] | None = None
        self._failed = False

    async def hand_over(self, batch: list[Chunk]) -> None:
        await self.settle()
        if batch and not self._failed:
            self._under_way = asyncio.create_task(anyio.to_thread.run_sync(self._write, batch))

    async def settle(self) -> None:
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        try:
            with anyio.CancelScope(shield=True):
                await under_way
        except BaseException:
            self._failed = True
            raise

"""Questions that may stay open until there is something new: one look a quarter of a second serves all who wait.

Source: RFC 6202, section 2 (long polling).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Generic, TypeVar

import anyio.to_thread
from concilia_kit import logs

LOOK_SECONDS = 0.25
MAX_WAIT = 30
"""Seconds that a question may stay open: less than proxies wait for an answer."""

Seen = TypeVar("Seen")
Told = TypeVar("Told")

_log = logs.get(__name__)


class Watch(Generic[Seen]):
    """Looks at something for as long as anybody waits for it to change. Of one event loop; `look` runs in threads."""

    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look
        self._seen: Seen | None = None
        self._waiting = 0
        self._turn = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def news(self, tell: Callable[[Seen], Told], is_known: Callable[[Told], bool], seconds: float) -> Told:
        """What `tell` makes of what is seen, once it is not known yet, or after so many seconds, `MAX_WAIT` at most."""
        until = time.monotonic() + min(seconds, MAX_WAIT)
        turn = self._turn
        told = await anyio.to_thread.run_sync(lambda: tell(self._look()))
        async with self._watched():
            while is_known(told) and (left := until - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(turn.wait(), left)
                turn, seen = self._turn, self._seen
                if seen is not None:
                    told = await anyio.to_thread.run_sync(partial(tell, seen))
        return told

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Have somebody look while anybody waits."""
        self._waiting += 1
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._waiting -= 1

    async def _watch(self) -> None:
        self._seen = None  # nobody looked since the last one went
        while self._waiting:
            try:
                seen = await anyio.to_thread.run_sync(self._look)
            except Exception as error:  # a database that is away now is there later
                _log.debug("not looked at", error=type(error).__name__)
            else:
                if seen != self._seen:
                    self._seen = seen
                    self._turn.set()
                    self._turn = asyncio.Event()
            await asyncio.sleep(LOOK_SECONDS)

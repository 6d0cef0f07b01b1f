"""A job as it happens: server-sent events from the ledger's Redis stream and the job's own.

An event's id is the place in both streams behind it: a reader who comes back with it misses and repeats nothing. Who
comes without one, or with one that no longer says where to go on, first gets the whole view; the place was taken before
the view was read, so that what happens in between is told after it.

Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.to_thread
import redis.asyncio
from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.tokens import Principal
from concilia_kit.wire.chain import STREAM, LedgerEvent
from concilia_kit.wire.changes import Change, job_stream
from concilia_kit.wire.jobs import JobView
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import ValidationError

from concilia_aggregator.changes import STREAM_LENGTH
from concilia_aggregator.errors import EventsUnavailable, TooManyStreams
from concilia_aggregator.positions import START, Position

STANDING_SECONDS = 5.0
KEEPALIVE_SECONDS = 8.0
_LOOK_SECONDS = 1.0  # how often a reader that hears nothing looks whether it is over
_RETRY_MS = 1000
_BATCH = 100
_THREADS = 8  # for views and standings of all readers together, beside those that answer other requests

_log = logs.get(__name__)


class Feeds:
    """All readers of a process, each with a connection of its own to Redis; at most `limit`.

    `view` reads a job (raises `JobNotFound`), `closing` is set when the process is to end.
    """

    def __init__(self, redis_url: str, limit: int, view: Callable[[str], JobView], closing: asyncio.Event) -> None:
        self._redis_url = redis_url
        self._limit = limit
        self._view = view
        self._closing = closing
        self._readers = 0
        self._threads = anyio.CapacityLimiter(_THREADS)

    @contextlib.asynccontextmanager
    async def open(
        self, job: str, last_event_id: str, caller: Principal, again: Callable[[], Principal]
    ) -> AsyncIterator[Feed]:
        """The feed of a job that is there, after `last_event_id`, for as long as the caller may read it.

        `again` says who the caller is by now. Raises `TooManyStreams`, `EventsUnavailable`.
        """
        if self._readers >= self._limit:
            raise TooManyStreams(f"{self._limit} readers follow jobs here", headers={"Retry-After": "5"})
        self._readers += 1
        try:
            async with redis.asyncio.from_url(self._redis_url, single_connection_client=True) as client:
                position = await _resumable(client, job, last_event_id)
                view = None
                if position is None:
                    position = await _ends(client, job)
                    view = await anyio.to_thread.run_sync(self._view, job, limiter=self._threads)
                standing = asyncio.create_task(self._lose_standing(again))
                try:
                    yield Feed(client, job, position, view, lambda: self._is_over(caller, standing))
                finally:
                    standing.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await standing
        except redis.RedisError as error:
            raise EventsUnavailable("events cannot be had at the moment", headers={"Retry-After": "2"}) from error
        finally:
            self._readers -= 1

    def _is_over(self, caller: Principal, standing: asyncio.Task[None]) -> bool:
        return self._closing.is_set() or standing.done() or time.time() >= caller.expires_at

    async def _lose_standing(self, again: Callable[[], Principal]) -> None:
        """Return when the caller holds no role any more, or nobody can tell."""
        with contextlib.suppress(Problem):
            while (await anyio.to_thread.run_sync(again, abandon_on_cancel=True, limiter=self._threads)).roles:
                await asyncio.sleep(STANDING_SECONDS)


class Feed:
    """One reader's events as bytes; ends when `is_over` says so, or Redis goes away."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        job: str,
        position: Position,
        view: JobView | None,
        is_over: Callable[[], bool],
    ) -> None:
        self._redis = client
        self._job = job
        self._position = position
        self._view = view
        self._is_over = is_over

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield format_sse_event(retry=_RETRY_MS)
        if self._view is not None:
            yield self._told(Change.SNAPSHOT, self._view.model_dump_json())
        spoken = time.monotonic()
        while True:
            try:
                entries = await self._read()
            except redis.RedisError as error:
                _log.warning("events stopped, readers will come back", error=type(error).__name__)
                return
            if self._is_over():
                return
            for stream, identifier, fields in entries:
                if (event := self._passed(stream, identifier.decode(), fields)) is not None:
                    yield event
                    spoken = time.monotonic()
            if time.monotonic() - spoken >= KEEPALIVE_SECONDS:
                yield KEEPALIVE_COMMENT
                spoken = time.monotonic()

    async def _read(self) -> list[tuple[str, bytes, dict[bytes, bytes]]]:
        """The next entries of both streams, none after `_LOOK_SECONDS` without any."""
        places: Any = {STREAM: self._position.ledger, job_stream(self._job): self._position.job}
        answer: Any = await self._redis.xread(places, count=_BATCH, block=int(_LOOK_SECONDS * 1000))
        return [(stream.decode(), identifier, fields) for stream, items in answer for identifier, fields in items]

    def _passed(self, stream: str, identifier: str, fields: dict[bytes, bytes]) -> bytes | None:
        """Step behind an entry; what is to be said of it, if anything."""
        try:
            if stream == STREAM:
                self._position = self._position._replace(ledger=identifier)
                event = LedgerEvent.model_validate_json(fields[b"event"])
                return self._told(Change.LEDGER, event.model_dump_json()) if event.job == self._job else None
            self._position = self._position._replace(job=identifier)
            return self._told(Change(fields[b"name"].decode()), fields[b"data"].decode())
        except (KeyError, ValueError, ValidationError):
            _log.warning("unreadable entry on a stream", stream=stream, entry=identifier)
            return None

    def _told(self, change: Change, data: str) -> bytes:
        return format_sse_event(event=change.value, data_str=data, id=str(self._position))


async def _resumable(client: redis.asyncio.Redis, job: str, last_event_id: str) -> Position | None:
    """The place a reader may go on from; None where it has none, or what follows it may be gone."""
    position = Position.parse(last_event_id)
    if position is None:
        return None
    there = await _is_there(client, STREAM, position.ledger) and await _is_there(client, job_stream(job), position.job)
    return position if there else None


async def _is_there(client: redis.asyncio.Redis, stream: str, identifier: str) -> bool:
    """Whether all that followed an entry is still there: streams lose entries from their beginning only, so it is as
    long as the entry itself is."""
    if identifier == START:
        return int(await client.xlen(stream)) < STREAM_LENGTH
    return bool(await client.xrange(stream, identifier, identifier))


async def _ends(client: redis.asyncio.Redis, job: str) -> Position:
    """The place behind all there is."""
    last: list[Any] = [await client.xrevrange(stream, count=1) for stream in (STREAM, job_stream(job))]
    ledger, own = (entries[0][0].decode() if entries else START for entries in last)
    return Position(ledger, own)

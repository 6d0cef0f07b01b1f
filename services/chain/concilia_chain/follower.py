"""Follows the chain block by block: events into the database, from there onto the Redis stream.

A block's events and the cursor behind them are stored together. What is stored is published afterwards and then marked,
so that a crash in between publishes again rather than loses; a start after a crash looks on the stream first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis
from concilia_kit import logs
from concilia_kit.wire.chain import STREAM, LedgerEvent

from concilia_chain.errors import ChainUnavailable, LedgerNotFollowed
from concilia_chain.events import Event
from concilia_chain.ledger import LedgerContract
from concilia_chain.store import Cursor, Store

_STREAM_LENGTH = 100_000
_BLOCKS_A_COMMIT = 64
_EVENTS_A_ROUND = 500
_SHORTENED_SECONDS = 3.0
_LOOK_SECONDS = 1.0
_CURRENT_SECONDS = 2.0  # shorter than other services wait for an answer about roles
_log = logs.get(__name__)


class Standing(NamedTuple):
    """How far following is: the newest block seen, the last one whose events are stored, seconds since all was well."""

    head: int
    stored: int
    idle_seconds: float


class Follower:
    """One ledger's follower: a thread that looks for new blocks, and callers who cannot wait for it."""

    def __init__(self, ledger: LedgerContract, store: Store, stream: redis.Redis, poll_seconds: float) -> None:
        self._ledger = ledger
        self._store = store
        self._stream = stream
        self._poll_seconds = poll_seconds
        self._following = threading.Lock()
        self._publishing = threading.Lock()
        self._unmarked: set[str] | None = None
        self._stopping = threading.Event()
        self._kicked = threading.Event()
        self._current = threading.Event()
        self._failure: Exception | None = None
        self._short_since: float | None = None
        self._looked_at = float("-inf")
        self._head = self._stored = store.deployment.block
        self._well_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it; what it did not finish is done after the next start."""
        self._stopping.set()
        self._kicked.set()
        self._thread.join()

    def check(self) -> None:
        """A readiness check: the thread lives, and its last round succeeded."""
        if not self._thread.is_alive():
            raise RuntimeError("the follower does not run")
        if self._failure is not None:
            raise self._failure

    def standing(self) -> Standing:
        """How far following is; asks neither the node nor the database, which may be what holds it up."""
        return Standing(self._head, self._stored, time.monotonic() - self._well_at)

    def catch_up(self, block: int | None = None) -> None:
        """Store all events up to a block, or up to the newest. Raises `ChainUnavailable`, `sqlalchemy.exc.DBAPIError`.

        Publishing is left to the thread, which is woken: a caller does not wait for Redis.
        """
        self._follow(block)
        self._kicked.set()

    def catch_up_surely(self) -> None:
        """Store all events up to the newest block, which is looked at even if its number is the one that is stored.

        Raises `ChainUnavailable` also where the chain has become shorter than what is stored, and it is not known yet
        whether it stays so.
        """
        self._looked_at = float("-inf")
        self.catch_up()
        if self._short_since is not None:
            raise ChainUnavailable("the node shows a shorter chain than before")

    @property
    def is_current(self) -> bool:
        """Whether what is stored was brought up to date since this start and since the last reorganisation."""
        return self._current.is_set()

    def require_current(self) -> None:
        """Wait until what is stored was brought up to date since this start and since the last reorganisation.

        Cheap where it was. Raises `LedgerNotFollowed` where it does not come to that within two seconds.
        """
        if not self._current.is_set():
            self._kicked.set()
            if not self._current.wait(_CURRENT_SECONDS):
                raise LedgerNotFollowed("the ledger's events are not read up to the newest block yet")

    def publish(self) -> None:
        """Put on the stream what is stored and not there yet, in order. Raises `redis.RedisError`."""
        with self._publishing:
            try:
                while events := self._store.unpublished(_EVENTS_A_ROUND):
                    self._publish(events)
                    if len(events) < _EVENTS_A_ROUND:
                        break
            except redis.RedisError:
                self._unmarked = None  # whether the last one arrived is not known
                raise

    def _follow(self, block: int | None = None) -> None:
        with self._following:
            cursor = self._store.cursor()
            self._stored = cursor.block
            head = self._ledger.head() if block is None else block
            self._head = head if block is None else max(self._head, block)
            if block is None and head <= cursor.block:
                cursor = self._same(cursor, head)
            while cursor.block < head:
                cursor = self._step(cursor, head)
                self._stored = cursor.block
            if block is None and self._short_since is None:
                self._current.set()

    def _same(self, cursor: Cursor, head: int) -> Cursor:
        """The cursor where the chain is not longer than what is stored: it may have been shortened, or have changed."""
        if head < cursor.block:
            # One of several nodes may lag behind the others for a moment; a chain that was shortened stays so.
            self._short_since = self._short_since or time.monotonic()
            if time.monotonic() - self._short_since < _SHORTENED_SECONDS:
                return cursor
        elif not self._is_another(cursor):
            self._short_since = None
            return cursor
        self._short_since = None
        return self._step_back(cursor)

    def _is_another(self, cursor: Cursor) -> bool:
        """Whether the chain has another block at the cursor's place; asked now and then only, for it rarely has."""
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = time.monotonic()
        found = self._ledger.block(cursor.block)
        return found is not None and found.hash != cursor.block_hash

    def _step(self, cursor: Cursor, head: int) -> Cursor:
        """Store the events of some blocks after the cursor, or step back where the chain changed its mind."""
        events: list[Event] = []
        place = cursor
        for number in range(cursor.block + 1, min(head, cursor.block + _BLOCKS_A_COMMIT) + 1):
            block = self._ledger.block(number)
            found = None if block is None else self._ledger.events_in(block)
            if block is None or found is None or block.parent != place.block_hash:
                break
            events += found
            place = Cursor(block.number, block.hash)
        if place == cursor:
            return self._step_back(cursor)
        # Where another process followed meanwhile, from where it stands.
        return place if self._store.advance(cursor, place, events) else self._store.cursor()

    def _step_back(self, cursor: Cursor) -> Cursor:
        """After a reorganisation: the newest stored block that the chain still has."""
        for place in (cursor, *self._store.blocks_with_events(), self._first()):
            block = self._ledger.block(place.block)
            if place.block <= cursor.block and block is not None and block.hash == place.block_hash:
                if place == cursor:
                    raise ChainUnavailable("the node's newest block is not there yet")
                _log.warning("the chain was reorganised", since=place.block, until=cursor.block)
                self._current.clear()  # until the blocks that came instead are read: a revocation may be in them
                return place if self._store.rewind(cursor, place) else self._store.cursor()
        raise ChainUnavailable("the chain does not have the ledger's first block any more; start the service anew")

    def _first(self) -> Cursor:
        return Cursor(self._store.deployment.block, self._store.deployment.block_hash)

    def _publish(self, events: Sequence[LedgerEvent]) -> None:
        if self._unmarked is None:  # after a start or a lost answer: what is there may not have been marked
            tail: Any = self._stream.xrevrange(STREAM, count=_EVENTS_A_ROUND)
            self._unmarked = {fields[b"event"].decode() for _, fields in tail if b"event" in fields}
        bodies = [event.model_dump_json() for event in events]
        with self._stream.pipeline(transaction=False) as together:
            for body in bodies:
                if body not in self._unmarked:
                    together.xadd(STREAM, {"event": body}, maxlen=_STREAM_LENGTH, approximate=True)
            together.execute()
        self._unmarked.update(bodies)
        self._store.mark_published(events)
        self._unmarked.difference_update(bodies)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._kicked.clear()
            try:
                self._follow()
                self.publish()
                self._failure, self._well_at = None, time.monotonic()
            except Exception as error:  # whatever fails, the next round tries again
                if self._failure is None:
                    _log.warning("following failed, trying again", error=f"{type(error).__name__}: {error}")
                self._failure = error
            self._kicked.wait(self._poll_seconds)

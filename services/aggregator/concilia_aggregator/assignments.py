"""What each hospital is asked for now, told to those who ask: over HTTPS alone, or to see that no message was lost.

A queue carries a task once; a message may be lost with the broker, or never reach a network that lets out HTTPS and
nothing else. Here a task stands as long as it is to be done, read from the jobs' states: whoever asks again is told
again, and what is done twice counts once. Who has nothing to do may leave its question open until there is something:
one query a quarter of a second serves all who wait.

Source: RFC 6202, section 2 (long polling).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import anyio.to_thread
from concilia_kit import digests, logs
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.training import EVALUATE_TASK, TRAIN_TASK, Assignment, EvaluateTask, TrainTask

from concilia_aggregator import dispatch
from concilia_aggregator.errors import JobNotFound
from concilia_aggregator.orders import Orders
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import Store, spec_of, state_of

LOOK_SECONDS = 0.25
MAX_WAIT = 30
"""Seconds that a question may stay open: less than proxies wait for an answer."""

_log = logs.get(__name__)


class Told(NamedTuple):
    """What one hospital is asked for, and a tag that is another whenever that is."""

    tasks: tuple[Assignment, ...]
    tag: str


class Assignments:
    """What hospitals are asked for, by the database. Of one event loop, but for `of`."""

    def __init__(self, store: Store, orders: Orders, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._orders = orders
        self._clock = clock
        self._jobs: dict[str, tuple[int, JobSpec, JobState]] = {}
        self._seen: dict[str, int] | None = None
        self._waiting = 0
        self._turn = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    def of(self, hospital: str) -> Told:
        """What one hospital is asked for now, job by job. Raises `Problem` where nobody says yet whom it is signed
        for."""
        return self._of(hospital, self._store.versions())

    def _of(self, hospital: str, versions: dict[str, int]) -> Told:
        found = [self._assigned(job, version, hospital) for job, version in sorted(versions.items())]
        tasks = tuple(each for each in found if each is not None)
        return Told(tasks, digests.of_json([each.model_dump(mode="json") for each in tasks]))

    async def news(self, hospital: str, known: str, seconds: float) -> Told:
        """The same, once its tag is not the one that is known, or after so many seconds."""
        until = time.monotonic() + min(seconds, MAX_WAIT)
        turn = self._turn
        told = await anyio.to_thread.run_sync(self.of, hospital)
        async with self._watched():
            while told.tag == known and (left := until - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(turn.wait(), left)
                turn, seen = self._turn, self._seen
                if seen is not None:
                    told = await anyio.to_thread.run_sync(self._of, hospital, seen)
        return told

    def _assigned(self, job: str, version: int, hospital: str) -> Assignment | None:
        kept = self._jobs.get(job)
        if kept is None or kept[0] != version:
            try:
                row = self._store.job(job)
            except JobNotFound:
                return None
            kept = row.version, spec_of(row), state_of(row)
            self._jobs[job] = kept
        _, spec, state = kept
        ability = frozenset() if spec.encoding.plain else self._store.ability(hospital)
        found = dispatch.assigned(job, spec, state, hospital, ability, self._clock())
        if found is None:
            return None
        if hospital not in state.cohort and not self._store.is_of(hospital, spec.classification):
            return None
        if isinstance(found, EvaluateTask) and self._store.has_reported(job, found.round, hospital):
            return None
        name = TRAIN_TASK if isinstance(found, TrainTask) else EVALUATE_TASK
        return Assignment(name=name, task=found, signature=self._orders.sign(name, found.model_dump(mode="json")))

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Have somebody look at the jobs while anybody waits."""
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
                versions = await anyio.to_thread.run_sync(self._store.versions)
            except Exception as error:  # a database that is away now is there later
                _log.debug("jobs not looked at", error=type(error).__name__)
            else:
                if versions != self._seen:
                    for ended in self._jobs.keys() - versions.keys():
                        self._jobs.pop(ended, None)
                    self._seen = versions
                    self._turn.set()
                    self._turn = asyncio.Event()
            await asyncio.sleep(LOOK_SECONDS)

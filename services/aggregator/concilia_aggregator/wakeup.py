"""What makes jobs move: the ledger's events, reports, and the clock, each turned into one `advance` task.

A marker in Redis keeps one task a job in the queue, however many reasons there are to look at it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis
from celery import Celery
from concilia_kit import logs
from concilia_kit.wire.chain import COLLECTED_STREAM, STREAM, Collected, LedgerEvent
from pydantic import ValidationError

from concilia_aggregator.store import Store

ADVANCE_TASK = "concilia.advance"
PROBE_TASK = "concilia.probe"
QUEUE = "aggregator"
_MARKER_SECONDS = 10  # a look that was queued and lost, with a killed worker, is queued anew then
PROBE_SECONDS = 5

_PROBE_MARKER = "concilia:probe"

_log = logs.get(__name__)


class Wakeup:
    """Asks the worker to look at a job."""

    def __init__(self, broker: Celery, client: redis.Redis) -> None:
        self._broker = broker
        self._redis = client

    def wake(self, job: str) -> None:
        """Queue one look at a job, unless one is queued already."""
        if self._redis.set(_marker(job), 1, nx=True, ex=_MARKER_SECONDS):
            self._broker.send_task(ADVANCE_TASK, kwargs={"job": job}, queue=QUEUE)

    def probe(self) -> None:
        """Queue a task that does nothing, once every `PROBE_SECONDS`: a worker that gets it does consume."""
        if self._redis.set(_PROBE_MARKER, 1, nx=True, ex=PROBE_SECONDS):
            self._broker.send_task(PROBE_TASK, queue=QUEUE, expires=PROBE_SECONDS)

    def woken(self, job: str) -> None:
        """The look begins: what happens from now on is worth another one."""
        self._redis.delete(_marker(job))


class Listener(threading.Thread):
    """Follows the ledger's event stream and the clock. A daemon thread: it holds nothing that must be finished."""

    def __init__(self, wakeup: Wakeup, client: redis.Redis, store: Store, tick_seconds: float) -> None:
        super().__init__(name="listener", daemon=True)
        self._wakeup = wakeup
        self._redis = client
        self._store = store
        self._tick_seconds = tick_seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End after the current wait."""
        self._stopped.set()

    def run(self) -> None:
        """Wake the jobs that events concern, and every active job once a tick: deadlines come without an event."""
        places: dict[str, bytes] = {STREAM: b"$", COLLECTED_STREAM: b"$"}
        ticked = float("-inf")
        while not self._stopped.is_set():
            try:
                if time.monotonic() - ticked >= self._tick_seconds:
                    ticked = time.monotonic()
                    self._wakeup.probe()
                    for job in self._store.active():
                        self._wakeup.wake(job)
                self._listen(places, max(0.0, ticked + self._tick_seconds - time.monotonic()))
            except redis.RedisError as error:
                _log.warning("redis does not answer, listening again", error=type(error).__name__)
                self._stopped.wait(self._tick_seconds)
            except Exception:
                _log.exception("listener failed, going on")
                self._stopped.wait(self._tick_seconds)

    def _listen(self, places: dict[str, bytes], seconds: float) -> None:
        """Wake whom the next entries concern, within some seconds; `places` are moved behind them."""
        answer: Any = self._redis.xread(places, block=max(1, int(seconds * 1000)), count=1000)  # type: ignore[arg-type]
        jobs: set[str] = set()
        for stream, entries in answer:
            for identifier, fields in entries:
                places[stream.decode()] = identifier
                try:
                    jobs.add(_concerned(fields))
                except (KeyError, ValidationError):
                    _log.warning("unreadable entry on the ledger's stream", entry=identifier.decode())
        if jobs:
            for job in jobs & set(self._store.active()):
                self._wakeup.wake(job)


def _concerned(fields: dict[bytes, bytes]) -> str:
    """The job that an entry is about. Raises `KeyError`, `ValidationError`."""
    if (collected := fields.get(b"round")) is not None:
        return Collected.model_validate_json(collected).job
    return LedgerEvent.model_validate_json(fields[b"event"]).job


def _marker(job: str) -> str:
    return f"concilia:advance:{job}"

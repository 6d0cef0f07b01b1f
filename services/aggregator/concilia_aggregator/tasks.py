"""The worker's only task: look at a job."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import redis
from celery import Celery
from concilia_kit import logs
from concilia_kit.problems import Problem

from concilia_aggregator.errors import JobNotFound
from concilia_aggregator.service import Coordinator
from concilia_aggregator.wakeup import ADVANCE_TASK, Wakeup

_LEASE_SECONDS = 10.0
"""A killed worker's hold on a job ends after this long; a living one renews it."""

_log = logs.get(__name__)


def register(worker: Celery, coordinator: Coordinator, wakeup: Wakeup, client: redis.Redis) -> None:
    """Add the task to a worker."""

    @worker.task(name=ADVANCE_TASK)  # type: ignore[untyped-decorator]
    def advance(job: str) -> None:
        # One worker a job at a time; another one's look ends with the state this one would see.
        with _lease(client, job) as held:
            if held:
                look(job)

    def look(job: str) -> None:
        try:
            wakeup.woken(job)
            coordinator.advance(job)
        except JobNotFound:
            _log.warning("asked to look at an unknown job", job=job)
        except Problem as problem:
            # The next tick tries again; nothing is half-done that it would not find.
            _log.warning("job held up", job=job, code=problem.problem_code, detail=problem.detail)


@contextlib.contextmanager
def _lease(client: redis.Redis, job: str) -> Iterator[bool]:
    """Hold a job for as long as the block runs; yields whether it was to be had."""
    lock = client.lock(f"concilia:lock:{job}", timeout=_LEASE_SECONDS, blocking=False, thread_local=False)
    if not lock.acquire():
        yield False
        return
    done = threading.Event()

    def renew() -> None:
        while not done.wait(_LEASE_SECONDS / 3):
            # Redis may be restarting. A lease lost to another worker is met by the state's version.
            with contextlib.suppress(redis.RedisError):
                lock.reacquire()

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        done.set()
        renewing.join()
        with contextlib.suppress(redis.RedisError):
            lock.release()

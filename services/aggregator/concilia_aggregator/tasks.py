"""The worker's tasks: look at a job, and show that tasks arrive."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import redis
from celery import Celery
from concilia_kit import logs
from concilia_kit.problems import Problem

from concilia_aggregator.errors import JobNotFound
from concilia_aggregator.leases import lease
from concilia_aggregator.service import Coordinator
from concilia_aggregator.wakeup import ADVANCE_TASK, PROBE_SECONDS, PROBE_TASK, Wakeup

SILENT_SECONDS = 4.0 * PROBE_SECONDS

_log = logs.get(__name__)


class Silent(Exception):
    """No task has arrived for longer than probes take to come."""


class Pulse:
    """When a task last arrived. A worker can go on living and stop consuming, after a broken connection for one."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._busy = False

    def check(self) -> None:
        """Raise `Silent` where tasks have stopped arriving; one that is under way may take its time."""
        if not self._busy and time.monotonic() - self._last > SILENT_SECONDS:
            raise Silent(f"no task for {SILENT_SECONDS:.0f} s")

    @contextlib.contextmanager
    def beat(self) -> Iterator[None]:
        """A task is under way."""
        self._busy = True
        try:
            yield
        finally:
            self._busy, self._last = False, time.monotonic()


def register(worker: Celery, coordinator: Coordinator, wakeup: Wakeup, client: redis.Redis, pulse: Pulse) -> None:
    """Add the tasks to a worker."""

    @worker.task(name=PROBE_TASK, shared=False)  # type: ignore[untyped-decorator]
    def probe() -> None:
        with pulse.beat():
            pass

    @worker.task(name=ADVANCE_TASK, shared=False)  # type: ignore[untyped-decorator]
    def advance(job: str) -> None:
        # One worker a job at a time; another one's look ends with the state this one would see.
        with pulse.beat(), lease(client, job) as held:
            if held:
                look(job)

    def look(job: str) -> None:
        try:
            wakeup.woken(job)
            if coordinator.advance(job):
                wakeup.wake(job)  # behind the looks at other jobs
        except JobNotFound:
            _log.warning("asked to look at an unknown job", job=job)
        except Problem as problem:
            # The next tick tries again; nothing is half-done that it would not find.
            _log.warning("job held up", job=job, code=problem.problem_code, detail=problem.detail)

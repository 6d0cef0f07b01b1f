"""The worker's only task: look at a job."""

from __future__ import annotations

import redis
from celery import Celery
from concilia_kit import logs
from concilia_kit.problems import Problem

from concilia_aggregator.errors import JobNotFound
from concilia_aggregator.service import Coordinator
from concilia_aggregator.wakeup import ADVANCE_TASK, Wakeup

_LOCK_SECONDS = 900  # longer than any fold; a killed worker's lock ends with it

_log = logs.get(__name__)


def register(worker: Celery, coordinator: Coordinator, wakeup: Wakeup, client: redis.Redis) -> None:
    """Add the task to a worker."""

    @worker.task(name=ADVANCE_TASK)  # type: ignore[untyped-decorator]
    def advance(job: str) -> None:
        # One worker a job at a time; another one's look ends with the state this one would see.
        lock = client.lock(f"concilia:lock:{job}", timeout=_LOCK_SECONDS, blocking=False)
        if not lock.acquire():
            return
        try:
            wakeup.woken(job)
            coordinator.advance(job)
        except JobNotFound:
            _log.warning("asked to look at an unknown job", job=job)
        except Problem as problem:
            # The next tick tries again; nothing is half-done that it would not find.
            _log.warning("job held up", job=job, code=problem.problem_code, detail=problem.detail)
        finally:
            lock.release()

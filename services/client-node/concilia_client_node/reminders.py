"""Tasks that the queue has lost, or never had, are put into it again.

Celery on Redis takes a message and notes it as taken in two steps; a process that is killed in between loses it, and so
does a Redis that comes back without what it held. The aggregator tells what this hospital is asked for by its own
records: what nobody of this hospital has in hand while the queue is empty, and was not done, is queued by the node
itself. So also a node that was away when a round was opened gets it when it returns.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import redis
from celery import Celery
from concilia_kit import logs
from concilia_kit.problems import Problem
from kombu.exceptions import KombuError

from concilia_client_node.consortium import Asked
from concilia_client_node.service import Hospital

REMIND_SECONDS = 10.0
_FIRST_SECONDS = 2.0

_log = logs.get(__name__)


class Reminders(threading.Thread):
    """Asks now and then. `idle` says whether queue and hands are empty; raises what the broker's clients raise."""

    def __init__(
        self,
        ask: Callable[[], Asked | None],
        idle: Callable[[], bool],
        hospital: Hospital,
        worker: Celery,
        queue: str,
        stop: threading.Event,
        seconds: float = REMIND_SECONDS,
    ) -> None:
        super().__init__(name="reminders", daemon=True)
        self._ask = ask
        self._idle = idle
        self._hospital = hospital
        self._worker = worker
        self._queue = queue
        self._stop_event = stop
        self._seconds = seconds

    def run(self) -> None:
        """Until the node stops."""
        self._stop_event.wait(min(_FIRST_SECONDS, self._seconds))
        while not self._stop_event.is_set():
            try:
                self.look()
            except (redis.RedisError, KombuError, OSError, Problem, ValueError) as error:
                _log.debug("not reminded", error=type(error).__name__)
            # Spread: many nodes were started, or came back, at one moment.
            self._stop_event.wait(self._seconds * random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    def look(self) -> int:
        """Queue what was lost; how many tasks. Raises what the broker's clients raise, `Problem`, `ValueError`."""
        if not self._idle():
            return 0
        asked = self._ask()
        tasks = asked.tasks if asked else ()
        for each in tasks:
            if self._hospital.has_ended(each.task):
                self._hospital.look_after(each.task)
        lost = [each for each in tasks if not self._hospital.has_ended(each.task)]
        if not lost or not self._idle():  # it came while we asked
            return 0
        for each in lost:
            words = {"task": each.task.model_dump(mode="json"), "signature": each.signature}
            self._worker.send_task(each.name, kwargs=words, queue=self._queue)
        _log.warning("tasks that the queue did not have were queued", tasks=len(lost))
        return len(lost)

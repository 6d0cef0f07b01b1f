"""A worker that lives and has stopped consuming is found, and ended for its supervisor to start it anew.

Celery reconnects by itself when its broker was away, mostly. Now and then it goes on living without taking anything, or
waits half a minute for its next try. What is looked at is what counts: there are messages in its queue, and for a while
it has none in hand and took none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import redis
from celery.worker import state

from concilia_kit import logs

LOOK_SECONDS = 1.0
SILENT_LOOKS = 12
"""Looks in a row that found messages and nobody who takes them, until a process is ended."""
EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""

_log = logs.get(__name__)


def tags_in_hand() -> set[str]:
    """Delivery tags of the tasks that this process runs, or keeps until it can or may run them."""
    requests = (*state.active_requests, *state.reserved_requests, *state.scheduled_requests)
    return {request.message.delivery_tag for request in requests}


def taken() -> tuple[int, int]:
    """Tasks that this process has in hand, and how many it ever took."""
    return len(tags_in_hand()), sum(state.total_count.values())


def _end() -> None:
    # Not sys.exit: this is not the main thread, and the main thread is what hangs. What is in hand is nothing.
    os._exit(EXIT_CODE)


class ConsumingWatch(threading.Thread):
    """Looks after this process's worker of one queue. A daemon thread."""

    def __init__(
        self,
        broker: redis.Redis,
        queue: str,
        taken: Callable[[], tuple[int, int]] = taken,
        end: Callable[[], None] = _end,
    ) -> None:
        super().__init__(name="consuming", daemon=True)
        self._broker: Any = broker  # redis-py's types mix its synchronous and asynchronous answers
        self._queue = queue
        self._taken = taken
        self._end = end
        self._silent = 0
        self._count = -1
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopped.wait(LOOK_SECONDS):
            self.look()

    def stop(self) -> None:
        """The worker ends by itself now."""
        self._stopped.set()

    def look(self) -> None:
        """Look once."""
        try:
            waiting = int(self._broker.llen(self._queue))
        except redis.RedisError:
            self._silent = 0  # nobody can consume; once it is back, the worker gets the time to find it
            return
        in_hand, count = self._taken()
        is_silent = waiting > 0 and not in_hand and count == self._count
        self._silent, self._count = (self._silent + 1 if is_silent else 0), count
        if self._silent >= SILENT_LOOKS:
            _log.critical("messages wait and the worker takes none; ending, to be started anew", queue=self._queue)
            self._end()

"""Says on Redis that updates of a Merkle round were collected, of which the chain tells nothing before the commitment.

Best effort: whoever waits looks at the round from time to time as well. While updates come it is said now and then;
where none came for a moment, perhaps since all are there, at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis
from concilia_kit import logs
from concilia_kit.wire.chain import COLLECTED_STREAM, Collected

_QUIET_SECONDS = 0.01
_MOST_SECONDS = 0.5
_STREAM_LENGTH = 1000
_log = logs.get(__name__)


class Announcer(threading.Thread):
    """One ledger's announcements. A daemon thread: it holds nothing that must be finished."""

    def __init__(self, stream: redis.Redis, count: Callable[[str, int], int]) -> None:
        super().__init__(name="announcer", daemon=True)
        self._stream = stream
        self._count = count
        self._changed = threading.Condition()
        self._rounds: set[tuple[str, int]] = set()
        self._stopping = False

    def tell(self, job: str, number: int) -> None:
        """Updates of a round were kept. Returns at once."""
        with self._changed:
            self._rounds.add((job, number))
            self._changed.notify()

    def stop(self) -> None:
        """End after what is being said."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self) -> None:
        """Until stopped."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._rounds) or self._stopping)
                until = time.monotonic() + _MOST_SECONDS
                while not self._stopping and time.monotonic() < until and self._changed.wait(_QUIET_SECONDS):
                    pass  # another one came
                if self._stopping:
                    return
                rounds, self._rounds = self._rounds, set()
            for job, number in rounds:
                self._say(job, number)

    def _say(self, job: str, number: int) -> None:
        try:
            body = Collected(job=job, round=number, updates=self._count(job, number)).model_dump_json()
            self._stream.xadd(COLLECTED_STREAM, {"round": body}, maxlen=_STREAM_LENGTH, approximate=True)
        except Exception as error:  # nothing that is kept depends on its being told
            _log.debug("not told that updates were collected", job=job, round=number, error=type(error).__name__)

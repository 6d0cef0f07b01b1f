"""What a node says about itself while it works: that it is there, and how far it is. Neither may hold work up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.wire.training import NodeRegistration, Progress

HEARTBEAT_SECONDS = 15.0
RETRY_SECONDS = 2.0
_PENDING = 32

_log = logs.get(__name__)


class Heartbeat(threading.Thread):
    """Registers the node, and again every `seconds`; keeps trying while the aggregator is away or the hospital is not
    enrolled yet. `refresh` is called after a refusal for a missing role: a token keeps the roles of its birth."""

    def __init__(
        self,
        address: str,
        registration: Callable[[], NodeRegistration],
        register: Callable[[str, NodeRegistration], None],
        refresh: Callable[[], object],
        stop: threading.Event,
        seconds: float = HEARTBEAT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._address = address
        self._registration = registration
        self._register = register
        self._refresh = refresh
        self._stop_event = stop
        self._seconds = seconds
        self._retry_seconds = retry_seconds
        self._said = ""

    def run(self) -> None:
        """Until the node stops."""
        while not self._stop_event.is_set():
            self._stop_event.wait(self._seconds if self._beat() else self._retry_seconds)

    def _beat(self) -> bool:
        try:
            self._register(self._address, self._registration())
        except Problem as problem:
            if problem.problem_status == 403:
                self._say(f"{self._address} does not hold the hospital role; waiting until an administrator enrols it")
                self._renew()
            else:
                self._say(f"waiting for the aggregator: {problem.detail}")
            return False
        except Exception:
            _log.exception("heartbeat failed, going on")
            return False
        self._say(f"registered as {self._address}")
        return True

    def _renew(self) -> None:
        try:
            self._refresh()
        except Problem as problem:
            _log.debug("no new token yet", code=problem.problem_code)

    def _say(self, sentence: str) -> None:
        """Log a state once, when it begins."""
        if sentence != self._said:
            _log.info(sentence)
            self._said = sentence


class ProgressReporter(threading.Thread):
    """Sends progress in the background. What cannot be sent is dropped; of one stage only the newest waits."""

    def __init__(self, send: Callable[[str, int, Progress], None]) -> None:
        super().__init__(name="progress", daemon=True)
        self._send = send
        self._pending: deque[tuple[str, int, Progress]] = deque(maxlen=_PENDING)
        self._changed = threading.Condition()
        self._busy = False

    def report(self, job: str, number: int, progress: Progress) -> None:
        """Say how far a round is. Returns at once."""
        with self._changed:
            if self._pending:
                last_job, last_number, last = self._pending[-1]
                if (last_job, last_number, last.stage) == (job, number, progress.stage):
                    self._pending.pop()
            self._pending.append((job, number, progress))
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is sent or dropped, at most so long; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending and not self._busy, seconds)

    def run(self) -> None:
        """For as long as the process lives."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._pending))
                item = self._pending.popleft()
                self._busy = True
            try:
                self._send(*item)
            except Exception as error:  # nothing that happens to a report concerns the training it is about
                _log.debug("progress not delivered", error=type(error).__name__)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

"""What a node says about itself: that it is there, that it would like to be enrolled, and how far it is.

None of it may hold work up.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable

from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.auth import Application
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.progress import Progress, Stage

from concilia_client_node.consortium import transient

HEARTBEAT_SECONDS = 15.0
RETRY_SECONDS = 2.0
_LONGEST_RETRY = 10.0
PACE_SECONDS = 0.25
_PENDING = 32
_ENDS = frozenset({Stage.SUBMITTED, Stage.EVALUATED, Stage.REFUSED, Stage.FAILED})

_log = logs.get(__name__)


class Heartbeat(threading.Thread):
    """Registers the node, and again every `seconds`; keeps trying while the aggregator is away or the hospital is not
    enrolled yet. After a refusal for a missing role, `apply` asks an administrator for it, once in a node's life, and
    `refresh` is called: a token keeps the roles of its birth."""

    def __init__(
        self,
        address: str,
        registration: Callable[[], NodeRegistration],
        register: Callable[[str, NodeRegistration], None],
        refresh: Callable[[], object],
        apply: Callable[[Application], object],
        stop: threading.Event,
        seconds: float = HEARTBEAT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._address = address
        self._registration = registration
        self._register = register
        self._refresh = refresh
        self._apply = apply
        self._has_applied = False
        self._not_filed = ""
        self._stop_event = stop
        self._seconds = seconds
        self._retry_seconds = retry_seconds
        self._said = ""
        self._unheard = 0

    def run(self) -> None:
        """Until the node stops."""
        while not self._stop_event.is_set():
            self._stop_event.wait(self._pause(self._beat()))

    def _pause(self, heard: bool) -> float:
        """Seconds until the next beat: a little spread, and longer each time where nobody answers."""
        self._unheard = 0 if heard else self._unheard + 1
        usual = self._seconds if heard else min(_LONGEST_RETRY, self._retry_seconds * 1.3**self._unheard)
        return usual * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, no secret

    def _beat(self) -> bool:
        try:
            self._register(self._address, self._registration())
        except Problem as problem:
            if problem.problem_status == 403:
                self._say(f"{self._address} does not hold the hospital role; waiting until an administrator enrols it")
                self._ask_for_role()
                self._renew()
            else:
                self._say(f"waiting for the aggregator: {problem.detail}")
            return False
        except Exception:
            _log.exception("heartbeat failed, going on")
            return False
        self._say(f"registered as {self._address}")
        return True

    def _ask_for_role(self) -> None:
        """File an application; tried again with the next beat where it did not arrive, and not where it was refused."""
        if self._has_applied:
            return
        try:
            self._apply(application_of(self._registration()))
        except Exception as error:  # whoever enrols this hospital may know of it all the same
            self._has_applied = not (isinstance(error, Problem) and transient(error))
            if (reason := str(error)[:200]) != self._not_filed:
                _log.warning("application for the hospital role not filed", reason=reason)
                self._not_filed = reason
            return
        self._has_applied = True
        _log.info("applied for the hospital role; an administrator decides", address=self._address)

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


def application_of(registration: NodeRegistration) -> Application:
    """What a hospital says when it asks for its role: its site's name, the source, and counts."""
    training, held_out = sum(registration.training_images), sum(registration.held_out_images)
    lesions = registration.training_lesions + registration.held_out_lesions
    return Application(
        role=Role.HOSPITAL,
        name=registration.site,
        note=f"{registration.source}: {training} images to train and {held_out} to test with, of {lesions} lesions.",
    )


class ProgressReporter(threading.Thread):
    """Sends progress in the background, so often that people see it move. What cannot be sent is dropped.

    Of what comes meanwhile only each task's newest is told, and how each ended.
    """

    def __init__(self, send: Callable[[str, int, Progress], None], pace_seconds: float = PACE_SECONDS) -> None:
        super().__init__(name="progress", daemon=True)
        self._send = send
        self._pace_seconds = pace_seconds
        self._flushing = 0
        self._pending: deque[tuple[str, int, Progress]] = deque(maxlen=_PENDING)
        self._changed = threading.Condition()
        self._busy = False
        self._ended = False

    def report(self, job: str, number: int, progress: Progress) -> None:
        """Say how far a round is. Returns at once."""
        with self._changed:
            if self._pending:
                last_job, last_number, last = self._pending[-1]
                if (last_job, last_number) == (job, number) and last.stage not in _ENDS:
                    self._pending.pop()
            self._pending.append((job, number, progress))
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is sent or dropped, at most so long; whether it is. Meanwhile nothing is held back."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._pending and not self._busy, seconds)
            finally:
                self._flushing -= 1

    def close(self, seconds: float) -> None:
        """`flush`, then end the thread; what is still unsent after `seconds` is dropped."""
        self.flush(seconds)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.join(seconds)

    def run(self) -> None:
        """Until `close`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or bool(self._pending))
                if self._ended:
                    return
                item = self._pending.popleft()
                self._busy = True
            try:
                self._send(*item)
            except Exception as error:  # nothing that happens to a report concerns the training it is about
                _log.debug("progress not delivered", error=type(error).__name__)
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._ended or self._flushing > 0, self._pace_seconds)

"""Tasks over HTTPS, for a hospital whose network lets nothing else out: the same tasks, asked for instead of queued.

The question stays open at the aggregator until there is something to do. A task stands there as long as it is to be
done, so that nothing can be lost between asking and doing: a process that was killed asks again when it returns. Of two
processes with one folder the second takes what the first is not working at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.wire.training import Assignment, EvaluateTask, Task, UnmaskTask

from concilia_client_node.consortium import Asked
from concilia_client_node.errors import Stopped
from concilia_client_node.service import Hospital
from concilia_client_node.tasks import EVALUATION_TRIES, pause

WAIT_SECONDS = 25
"""How long a question may stay open: less than proxies wait for an answer."""

LOOK_AFTER_SECONDS = 10.0
"""Between two looks whether what was brought for a round that is open is still there."""

_log = logs.get(__name__)
Ask = Callable[[str, int], Asked | None]
"""Asks for tasks: the tag of those known, seconds to wait for others. Raises `Problem`, `ValueError`."""


class _Again(NamedTuple):
    """How often a task was tried, and when it is to be tried again (monotonic seconds)."""

    tries: int
    not_before: float


class Polling:
    """Asks and works, in the thread that calls `run`."""

    def __init__(self, ask: Ask, hospital: Hospital, stop: threading.Event, wait_seconds: int = WAIT_SECONDS) -> None:
        self._ask = ask
        self._hospital = hospital
        self._stop = stop
        self._wait_seconds = wait_seconds
        self._known = Asked((), "")
        self._again: dict[Task, _Again] = {}
        self._looked_after = time.monotonic()
        self._answers = threading.Event()
        self.is_working = False
        self._said = ""

    def run(self) -> None:
        """Until the node stops. One task at a time."""
        failures = 0
        while not self._stop.is_set():
            if (due := self._due()) is not None:
                self._work(due)
                continue
            try:
                self._look()
            except (Problem, ValueError, OSError) as error:
                failures += 1
                self._answers.clear()
                self._say(f"asking for tasks again and again: {error}")
                self._stop.wait(pause(failures - 1))
            else:
                failures = 0
                self._answers.set()
                self._say("asks for tasks over HTTPS")

    def check(self) -> None:
        """Raise `ConnectionError` where the last question had no answer."""
        if not self._answers.is_set():
            raise ConnectionError(self._said or "no question was answered yet")

    def _look(self) -> None:
        """Ask for tasks; at once where some are known that are to be tried again soon."""
        pending = [self._not_before(each) for each in self._open()]
        standing = [each for each in self._known.tasks if self._hospital.has_ended(each.task)]
        if standing and time.monotonic() - self._looked_after >= LOOK_AFTER_SECONDS:
            self._looked_after = time.monotonic()
            for each in standing:
                self._hospital.look_after(each.task)
        wait: float = self._wait_seconds if not standing else min(self._wait_seconds, LOOK_AFTER_SECONDS)
        if pending:
            wait = max(0.0, min(pending) - time.monotonic())
        asked = self._ask(self._known.tag, min(self._wait_seconds, int(wait)))
        if asked is not None:
            self._known = asked
            self._again = {each.task: self._again[each.task] for each in asked.tasks if each.task in self._again}
        elif 0 < wait < 1:
            self._stop.wait(wait)

    def _open(self) -> list[Assignment]:
        return [each for each in self._known.tasks if not self._hospital.has_ended(each.task)]

    def _due(self) -> Assignment | None:
        """The next task to work at: of those that may be tried now, one that no sibling is at, if there is, and one
        that others wait for at once."""
        now = time.monotonic()
        due = [each for each in self._open() if self._not_before(each) <= now]
        return min(due, key=lambda each: (self._is_taken(each), not isinstance(each.task, UnmaskTask)), default=None)

    def _not_before(self, each: Assignment) -> float:
        again = self._again.get(each.task)
        return 0.0 if again is None else again.not_before

    def _is_taken(self, each: Assignment) -> bool:
        task = each.task
        return not isinstance(task, EvaluateTask) and self._hospital.folder.is_taken(task.job, task.round)

    def _work(self, each: Assignment) -> None:
        task = each.task
        self.is_working = True
        try:
            self._hospital.work(task, each.signature)
        except Stopped:
            return
        except Problem as problem:
            before = self._again.get(task)
            tries = 1 if before is None else before.tries + 1
            if not _worth_it(task, tries):
                self._hospital.give_up(task, problem)
                return
            delay = pause(tries - 1)
            self._again[task] = _Again(tries, time.monotonic() + delay)
            _log.warning("will try again", code=problem.problem_code, detail=problem.detail, seconds=round(delay, 1))
        finally:
            self.is_working = False

    def _say(self, sentence: str) -> None:
        """Log a state once, when it begins."""
        if sentence != self._said:
            _log.info(sentence)
            self._said = sentence


def _worth_it(task: Task, tries: int) -> bool:
    return tries < EVALUATION_TRIES if isinstance(task, EvaluateTask) else time.time() < task.deadline

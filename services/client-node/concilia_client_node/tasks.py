"""The node's three Celery tasks: parse, call, and say what becomes of the message.

A task that is worth another try goes back with a growing, jittered delay; one that was interrupted by the node's end
goes back at once; one that cannot be read is dropped, as no other try would read it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from celery import Celery
from celery.exceptions import Reject
from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.wire.training import (
    EVALUATE_TASK,
    TRAIN_TASK,
    UNMASK_TASK,
    EvaluateTask,
    Task,
    TrainTask,
    UnmaskTask,
)
from pydantic import BaseModel, ValidationError

from concilia_client_node.errors import Stopped
from concilia_client_node.service import Hospital

MAX_DELAY = 10.0  # seconds; a service that was away for long is found by then
EVALUATION_TRIES = 30

_log = logs.get(__name__)
_Task = TypeVar("_Task", bound=BaseModel)


def register(app: Celery, hospital: Hospital, queue: str) -> None:
    """Add the tasks to a worker of that queue."""

    @app.task(name=TRAIN_TASK, bind=True, max_retries=None, shared=False)  # type: ignore[untyped-decorator]
    def train(self: Any, task: dict[str, Any], signature: str = "") -> None:
        if (parsed := _parse(TrainTask, task)) is not None:
            _attempt(self, hospital, parsed, signature, queue, lambda: time.time() < parsed.deadline)

    @app.task(name=EVALUATE_TASK, bind=True, max_retries=None, shared=False)  # type: ignore[untyped-decorator]
    def evaluate(self: Any, task: dict[str, Any], signature: str = "") -> None:
        if (parsed := _parse(EvaluateTask, task)) is not None:
            _attempt(self, hospital, parsed, signature, queue, lambda: self.request.retries < EVALUATION_TRIES)

    @app.task(name=UNMASK_TASK, bind=True, max_retries=None, shared=False)  # type: ignore[untyped-decorator]
    def unmask(self: Any, task: dict[str, Any], signature: str = "") -> None:
        if (parsed := _parse(UnmaskTask, task)) is not None:
            _attempt(self, hospital, parsed, signature, queue, lambda: time.time() < parsed.deadline)


def pause(tried: int) -> float:
    """Seconds until the next try after so many: longer each time, jittered, so that many nodes do not come at one
    moment."""
    return random.uniform(0.5, 1.0) * min(MAX_DELAY, 2.0**tried)  # noqa: S311 - jitter, no secret


def _parse(kind: type[_Task], task: object) -> _Task | None:
    try:
        return kind.model_validate(task)
    except ValidationError as error:
        faults = [{"where": ".".join(map(str, fault["loc"])), "what": fault["msg"]} for fault in error.errors()[:5]]
        _log.error("malformed task dropped", kind=kind.__name__, faults=faults)
        return None


def _attempt(
    celery_task: Any,
    hospital: Hospital,
    task: Task,
    signature: str,
    queue: str,
    worth_it: Callable[[], bool],
) -> None:
    try:
        hospital.work(task, signature)
    except Stopped as stopped:
        raise Reject("the node is shutting down", requeue=True) from stopped
    except Problem as problem:
        if not worth_it():
            hospital.give_up(task, problem)
            return
        delay = pause(celery_task.request.retries)
        _log.warning("will try again", code=problem.problem_code, detail=problem.detail, seconds=round(delay, 1))
        raise celery_task.retry(exc=problem, countdown=delay, queue=queue) from problem

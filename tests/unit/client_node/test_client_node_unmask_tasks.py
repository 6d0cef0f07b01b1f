"""Unmasking as it reaches a node: by its queue, and asked for over HTTPS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from concilia_client_node import metrics, tasks
from concilia_client_node.consortium import Asked
from concilia_client_node.metrics import NodeMetrics
from concilia_client_node.polling import Polling
from concilia_kit.wire.masking import Stage as Masking
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import UNMASK_TASK, Assignment, Task, UnmaskTask, name_of
from prometheus_client import CollectorRegistry

from .masked_rounds import ACCOUNT, FAR, Round, secure_round


@pytest.fixture
def masked(consortium: Any, tmp_path: Path) -> Iterator[Round]:
    with secure_round(consortium, tmp_path / "round") as made:
        yield made


@pytest.fixture
def task(masked: Round) -> UnmaskTask:
    """Of a round whose updates are all there."""
    hospital = masked.hospital()
    masked.consortium.ask(hospital, masked.task)
    masked.room.submit()
    return masked.room.settle()


def test_a_message_of_the_queue_is_carried_out(masked: Round, task: UnmaskTask) -> None:
    hospital, worker = masked.hospital(), Celery("node", set_as_current=False)
    tasks.register(worker, hospital, "tasks")
    none = task.model_dump(mode="json") | {"survivors": []}
    worker.tasks[UNMASK_TASK].apply(kwargs=masked.consortium.message(UNMASK_TASK, none))
    assert ACCOUNT.address not in masked.room.consents
    message = masked.consortium.message(UNMASK_TASK, task.model_dump(mode="json"))
    worker.tasks[UNMASK_TASK].apply(kwargs=message)
    assert masked.ended(hospital).stage is Stage.SUBMITTED
    assert ACCOUNT.address in masked.room.revealed


def test_it_is_asked_for_and_comes_before_what_takes_long(masked: Round, task: UnmaskTask) -> None:
    """A training of another job can wait; the others of this round cannot."""
    hospital, stop = masked.hospital(), threading.Event()
    other = masked.task.model_copy(update={"job": "0" * 64, "deadline": FAR})
    done: list[Task] = []

    class Noting:
        folder = hospital.folder

        def has_ended(self, task: Task) -> bool:
            return task in done

        def work(self, task: Task, signature: str) -> None:
            done.append(task)
            if len(done) == 2:
                stop.set()
            if isinstance(task, UnmaskTask):
                hospital.work(task, signature)

    sign = masked.consortium.sign
    asked = tuple(Assignment(name=name_of(each), task=each, signature=sign(each)) for each in (other, task))
    Polling(lambda known, wait: Asked(asked, "1"), Noting(), stop, wait_seconds=1).run()  # type: ignore[arg-type]
    assert done == [task, other]
    assert masked.room.revealed.keys() >= {ACCOUNT.address}
    assert masked.room.stage is Masking.REVEAL


def test_attempts_are_counted_by_name(masked: Round, task: UnmaskTask) -> None:
    registry = CollectorRegistry()
    hospital = masked.hospital()
    object.__setattr__(hospital, "metrics", NodeMetrics(registry))
    masked.consortium.ask(hospital, task)
    labels = {"task": metrics.UNMASK, "outcome": "submitted"}
    assert registry.get_sample_value("concilia_node_tasks_total", labels) == 1

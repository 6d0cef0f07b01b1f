"""What wakes jobs, on a real Redis: one look a job in the queue, probes, and a worker's hold on a job."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from concilia_aggregator import tasks
from concilia_aggregator.errors import JobNotFound
from concilia_aggregator.tasks import Pulse, Silent
from concilia_aggregator.wakeup import ADVANCE_TASK, PROBE_TASK, QUEUE, Wakeup
from concilia_kit import queue
from concilia_kit.problems import Unavailable


class Looks:
    """A coordinator that only counts."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.error: Exception | None = None

    def advance(self, job: str) -> None:
        self.jobs.append(job)
        if self.error:
            raise self.error


def make(redis_url: str) -> tuple[Any, Wakeup, redis.Redis, Looks, Pulse]:
    broker, client = queue.application("test", redis_url), redis.Redis.from_url(redis_url)
    wakeup, looks, pulse = Wakeup(broker, client), Looks(), Pulse()
    tasks.register(broker, looks, wakeup, client, pulse)  # type: ignore[arg-type]
    return broker, wakeup, client, looks, pulse


def test_one_look_a_job_is_queued(redis_url: str) -> None:
    broker, wakeup, client, looks, _ = make(redis_url)
    for _ in range(5):
        wakeup.wake("a")
        wakeup.wake("b")
    assert client.llen(QUEUE) == 2
    broker.tasks[ADVANCE_TASK]("a")
    wakeup.wake("a")
    assert client.llen(QUEUE) == 3
    assert looks.jobs == ["a"]


def test_a_job_that_another_worker_holds_is_left_alone(redis_url: str) -> None:
    broker, _, client, looks, _ = make(redis_url)
    held = client.lock("concilia:lock:a", timeout=10)
    assert held.acquire()
    broker.tasks[ADVANCE_TASK]("a")
    assert looks.jobs == []
    held.release()
    broker.tasks[ADVANCE_TASK]("a")
    assert looks.jobs == ["a"]
    assert not client.exists("concilia:lock:a")


@pytest.mark.parametrize("error", [Unavailable("down"), JobNotFound("gone")])
def test_what_holds_a_job_up_lets_go_of_it(redis_url: str, error: Exception) -> None:
    broker, _, client, looks, _ = make(redis_url)
    looks.error = error
    broker.tasks[ADVANCE_TASK]("a")
    assert not client.exists("concilia:lock:a")


def test_probes_show_a_worker_that_stopped_consuming(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, wakeup, client, _, pulse = make(redis_url)
    wakeup.probe()
    wakeup.probe()
    assert client.llen(QUEUE) == 1
    pulse.check()
    monkeypatch.setattr(tasks, "SILENT_SECONDS", -1.0)
    with pytest.raises(Silent):
        pulse.check()
    with pulse.beat():
        pulse.check()
    monkeypatch.undo()
    broker.tasks[PROBE_TASK]()
    pulse.check()

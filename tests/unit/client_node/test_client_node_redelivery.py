"""Tasks of the dead come back, tasks of the living stay: on a real Redis, through kombu's own bookkeeping."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from concilia_client_node.broker import Transport
from concilia_client_node.redelivery import DEAD_AFTER, FORGOTTEN_AFTER, Siblings, transport_options
from concilia_kit import queue
from concilia_kit.wire.queues import OWN_QUEUE

PREFIX = "node.0xab:"
QUEUE = "node.0xab:tasks"


@pytest.fixture
def broker(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def worker(redis_url: str) -> Iterator[Celery]:
    app: Celery = queue.application("test", redis_url)
    app.conf.broker_transport = Transport
    yield app
    app.close()


class Process:
    """What a node's process does on the broker: takes tasks as kombu does, beats, looks."""

    def __init__(self, name: str, worker: Celery, broker: Any) -> None:
        self.name = name
        self.in_hand: set[str] = set()
        self.siblings = Siblings(worker, PREFIX, OWN_QUEUE, name, broker, lambda: self.in_hand)
        self._connection: Any = worker.connection_for_read(transport_options=transport_options(PREFIX, OWN_QUEUE, name))
        self._channel: Any = self._connection.default_channel
        self._channel.do_restore = False  # a killed process restores nothing

    def take(self) -> Any:
        message = self._channel.basic_get(OWN_QUEUE)
        if message is not None:
            self.in_hand.add(message.delivery_tag)
        return message

    def look(self, times: int = 1) -> int:
        return sum(self.siblings.look() for _ in range(times))

    def close(self) -> None:
        self._connection.release()


@pytest.fixture
def processes(worker: Celery, broker: Any) -> Iterator[list[Process]]:
    made = [Process(name, worker, broker) for name in ("a", "b", "c")]
    yield made
    for process in made:
        process.close()


def send(worker: Celery, count: int = 1) -> None:
    """As the aggregator does: by the queue's whole name."""
    with queue.application("aggregator", worker.conf.broker_url) as aggregator:
        for number in range(count):
            aggregator.send_task("task", kwargs={"number": number}, queue=QUEUE)


def test_a_dead_process_s_tasks_come_back_in_order_and_once(
    worker: Celery, broker: Any, processes: list[Process]
) -> None:
    dead, first, second = processes
    send(worker, 2)
    dead.look()
    taken = [dead.take(), dead.take()]
    assert broker.llen(QUEUE) == 0
    looks = [(first.look(), second.look()) for _ in range(DEAD_AFTER + 3)]
    assert sum(map(sum, looks)) == 2
    assert looks[: DEAD_AFTER - 1] == [(0, 0)] * (DEAD_AFTER - 1)
    back = [first.take(), second.take(), first.take()]
    assert back[2] is None
    assert {item.headers["id"] for item in back[:2]} == {item.headers["id"] for item in taken}
    assert all(item.headers["redelivered"] for item in back[:2])
    assert not broker.exists(f"{QUEUE}.unacked.a")


def test_a_living_process_s_task_stays_however_long_it_takes(
    worker: Celery, broker: Any, processes: list[Process]
) -> None:
    busy, other, _ = processes
    send(worker)
    busy.take()
    for _ in range(3 * DEAD_AFTER):
        assert busy.look() == other.look() == 0
    assert broker.hlen(f"{QUEUE}.unacked.a") == 1


def test_nobody_is_taken_for_dead_because_the_broker_was_away(
    worker: Celery, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, other, _ = processes
    send(worker)
    busy.take()
    busy.look()
    assert other.look(DEAD_AFTER) == 0
    called = threading.Event()

    def away() -> int:
        called.set()
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr("concilia_client_node.redelivery.BEAT_SECONDS", 0.01)
        patch.setattr(other.siblings, "look", away)
        other.siblings.start()
        assert called.wait(10)
        other.siblings.leave()
    assert other.look(DEAD_AFTER) == 0  # all over again
    assert other.look() == 1


def test_a_process_is_known_before_it_may_take_anything_and_not_before_the_broker_knows(
    worker: Celery, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other, _ = processes
    answers = iter([redis.ConnectionError("away"), 0])

    def look() -> int:
        answer = next(answers, 0)
        if isinstance(answer, Exception):
            assert not first.siblings.known.is_set()
            raise answer
        return Siblings.look(first.siblings)

    monkeypatch.setattr(first.siblings, "look", look)
    first.siblings.start()
    assert first.siblings.known.wait(10)
    send(worker)
    assert first.take() is not None
    first.siblings._end.set()  # killed
    first.siblings.join()
    assert other.look(DEAD_AFTER + 1) == 1
    assert other.take() is not None


def test_a_paused_process_that_goes_on_is_living_again(worker: Celery, broker: Any, processes: list[Process]) -> None:
    paused, other, _ = processes
    send(worker)
    message = paused.take()
    paused.look()
    assert other.look(DEAD_AFTER + 1) == 1
    message.ack()  # it did not notice; nothing breaks, and the task stays with the other
    assert broker.llen(QUEUE) == 1
    paused.in_hand.clear()
    assert paused.take() is not None
    for _ in range(2 * DEAD_AFTER):
        assert paused.look() == other.look() == 0


def test_what_was_lost_with_a_connection_comes_back(worker: Celery, broker: Any, processes: list[Process]) -> None:
    process, _, _ = processes
    send(worker, 2)
    process.take()
    lost = process.take()
    process.in_hand.discard(lost.delivery_tag)
    assert process.look(DEAD_AFTER) == 0
    assert process.look() == 1
    assert broker.llen(QUEUE) == broker.hlen(f"{QUEUE}.unacked.a") == 1
    assert process.look(2 * DEAD_AFTER) == 0


def test_the_dead_are_forgotten_and_who_leaves_says_so(worker: Celery, broker: Any, processes: list[Process]) -> None:
    dead, leaving, other = processes
    dead.look()
    leaving.look()
    leaving.siblings.start()
    leaving.siblings.leave()
    other.look()
    assert set(broker.hgetall(f"{QUEUE}.beats")) == {b"a", b"c"}
    other.look(FORGOTTEN_AFTER)
    assert set(broker.hgetall(f"{QUEUE}.beats")) == {b"c"}


def test_who_leaves_with_tasks_in_its_list_is_still_looked_after(
    worker: Celery, broker: Any, processes: list[Process]
) -> None:
    leaving, other, _ = processes
    send(worker)
    leaving.take()
    leaving.siblings.start()
    leaving.look()
    leaving.siblings.leave()
    assert other.look(DEAD_AFTER + 1) == 1
    assert broker.llen(QUEUE) == 1

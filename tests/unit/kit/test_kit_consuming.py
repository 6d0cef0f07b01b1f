"""A worker that stopped consuming is found, and one that works, or cannot, is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from concilia_kit.consuming import SILENT_LOOKS, ConsumingWatch

QUEUE = "some.queue"


class World:
    def __init__(self, broker: Any) -> None:
        self.in_hand, self.count, self.ended = 0, 7, 0
        self.watch = ConsumingWatch(broker, QUEUE, lambda: (self.in_hand, self.count), self._end)

    def look(self, times: int) -> int:
        for _ in range(times):
            self.watch.look()
        return self.ended

    def _end(self) -> None:
        self.ended += 1


@pytest.fixture
def broker(redis_url: str) -> Any:
    return redis.Redis.from_url(redis_url)


@pytest.fixture
def world(broker: Any) -> World:
    made = World(broker)
    broker.rpush(QUEUE, "a message")
    made.look(1)  # how many it took until now
    return made


def test_messages_that_nobody_takes_end_the_process(world: World) -> None:
    assert world.look(SILENT_LOOKS - 1) == 0
    assert world.look(1) == 1


def test_a_task_in_hand_may_take_its_time(world: World) -> None:
    world.in_hand = 1
    assert world.look(10 * SILENT_LOOKS) == 0


def test_tasks_that_are_taken_between_looks_count(world: World) -> None:
    for _ in range(10):
        world.look(SILENT_LOOKS - 1)
        world.count += 1
        world.look(1)
    assert world.ended == 0


def test_an_empty_queue_is_no_reason(world: World, broker: Any) -> None:
    world.look(SILENT_LOOKS - 1)
    broker.delete(QUEUE)
    assert world.look(10 * SILENT_LOOKS) == 0


def test_while_the_broker_is_away_nobody_can_consume_and_then_has_time_to_find_it() -> None:
    class Away:
        is_away = False

        def llen(self, _queue: str) -> int:
            if self.is_away:
                raise redis.ConnectionError
            return 1

    broker = Away()
    world = World(broker)
    world.look(SILENT_LOOKS - 1)
    broker.is_away = True
    assert world.look(10 * SILENT_LOOKS) == 0
    broker.is_away = False
    assert world.look(SILENT_LOOKS - 1) == 0
    assert world.look(1) == 1

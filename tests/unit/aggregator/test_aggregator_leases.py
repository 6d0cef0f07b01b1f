"""A worker's hold on a real Redis: one at a time, kept while it works, and no hindrance to who left it behind."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis
from concilia_aggregator import leases
from concilia_aggregator.leases import lease


@pytest.fixture
def client(redis_url: str) -> Any:
    return redis.Redis.from_url(redis_url)


def test_one_at_a_time(client: Any) -> None:
    with lease(client, "a job") as first, lease(client, "a job") as second, lease(client, "another") as third:
        assert (first, second, third) == (True, False, True)
    with lease(client, "a job") as again:
        assert again


def test_another_process_s_hold_is_respected(client: Any) -> None:
    client.set("concilia:lock:a job", "somebody", px=10_000)
    with lease(client, "a job") as held:
        assert not held


def test_what_could_not_be_let_go_of_is_taken_back_at_once(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as away, lease(client, "a job") as held:
        assert held

        def unreachable(_lock: object) -> None:
            raise redis.ConnectionError

        away.setattr("redis.lock.Lock.release", unreachable)
    assert client.exists("concilia:lock:a job")
    with lease(client, "a job") as again:
        assert again
    assert not client.exists("concilia:lock:a job")


def test_a_hold_lasts_as_long_as_the_work(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.6)
    with lease(client, "a job") as held:
        time.sleep(1.5)
        assert held
        assert client.exists("concilia:lock:a job")

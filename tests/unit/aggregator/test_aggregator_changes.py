"""Telling what changed on a real Redis, and on one that is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from concilia_aggregator import changes
from concilia_aggregator.changes import Changes
from concilia_kit.wire.changes import Change, RoundChange, job_stream

JOB = "a" * 64


def test_changes_are_kept_in_order_and_not_for_ever(redis_url: str) -> None:
    tell, client = Changes(redis_url), redis.Redis.from_url(redis_url)
    for number in (1, 2):
        tell(JOB, Change.ROUND, RoundChange(round=number))
    entries: Any = client.xrange(job_stream(JOB))
    assert [fields for _, fields in entries] == [
        {b"name": b"round", b"data": b'{"round":%d}' % number} for number in (1, 2)
    ]
    assert 0 < client.ttl(job_stream(JOB)) <= 7 * 86_400


def test_a_long_stream_is_shortened_but_not_below_its_length(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "STREAM_LENGTH", 100)
    tell, client = Changes(redis_url), redis.Redis.from_url(redis_url)
    for number in range(500):
        tell(JOB, Change.ROUND, RoundChange(round=number))
    assert 100 <= client.xlen(job_stream(JOB)) < 500


def test_a_redis_that_is_away_is_nobodys_trouble(free_port: Callable[[], int]) -> None:
    tell = Changes(f"redis://127.0.0.1:{free_port()}/0")
    for number in range(1000):
        tell(JOB, Change.ROUND, RoundChange(round=number))


def test_a_connection_that_broke_costs_no_change(redis_url: str) -> None:
    tell, client = Changes(redis_url), redis.Redis.from_url(redis_url)
    for number in range(3):
        tell(JOB, Change.ROUND, RoundChange(round=number))
        client.client_kill_filter(_type="normal", skipme=True)
    assert client.xlen(job_stream(JOB)) == 3

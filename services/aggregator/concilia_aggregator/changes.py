"""Telling what changed: an entry on the job's own Redis stream, for those who watch it.

Best effort, after the fact: what is true is in the database. A Redis that is away costs a state change at most a moment
once a second, and whoever missed an entry gets the whole view when it comes back.
"""

from __future__ import annotations

import time
from typing import Protocol

import redis
from concilia_kit import logs
from concilia_kit.wire.base import Wire
from concilia_kit.wire.changes import Change, job_stream
from redis.backoff import NoBackoff
from redis.retry import Retry

STREAM_LENGTH = 10_000
"""Entries of a job that are kept at least; a stream is never shortened below."""

_KEPT_SECONDS = 7 * 86_400  # after a job's last change
_PATIENCE = 0.5
_QUIET_SECONDS = 1.0

_log = logs.get(__name__)


class Tell(Protocol):
    """Tells those who watch a job what changed. Never raises."""

    def __call__(self, job: str, change: Change, what: Wire) -> None:
        """`what` is the change's own model."""
        ...


def nobody(job: str, change: Change, what: Wire) -> None:
    """A `Tell` where nobody watches."""


class Changes:
    """`Tell` over Redis. Opens no connection before the first change."""

    def __init__(self, redis_url: str) -> None:
        # One repetition: the first command after a restart of Redis finds its connection closed.
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE, retry=Retry(NoBackoff(), 1)
        )
        self._quiet_until = 0.0

    def __call__(self, job: str, change: Change, what: Wire) -> None:
        """See `Tell`."""
        if time.monotonic() < self._quiet_until:
            return
        stream, entry = job_stream(job), {"name": change.value, "data": what.model_dump_json()}
        try:
            with self._redis.pipeline(transaction=False) as both:
                both.xadd(stream, entry, maxlen=STREAM_LENGTH, approximate=True)  # type: ignore[arg-type]
                both.expire(stream, _KEPT_SECONDS)
                both.execute()
        except redis.RedisError as error:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            _log.debug("change not told", job=job, change=change.value, error=type(error).__name__)

"""A hold that one worker has on what it works at, and that ends with the worker."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator

import redis
from redis.exceptions import LockError
from redis.lock import Lock

LEASE_SECONDS = 10.0
"""A killed worker's hold ends after this long; a living one renews it."""


_OURS = uuid.uuid4().hex
_held: set[str] = set()
"""What this process works at just now."""


def _taken_back(client: redis.Redis, lock: Lock) -> bool:
    """Whether the hold is one that this process could not let go of, because Redis was away just then."""
    name = str(lock.name)
    if name in _held or client.get(name) != _OURS.encode():
        return False
    lock.local.token = _OURS.encode()
    try:
        return bool(lock.reacquire())
    except LockError:  # it ended just now
        return False


@contextlib.contextmanager
def lease(client: redis.Redis, what: str) -> Iterator[bool]:
    """Hold something for as long as the block runs; yields whether it was to be had. Raises `redis.RedisError`."""
    lock = client.lock(f"concilia:lock:{what}", timeout=LEASE_SECONDS, blocking=False, thread_local=False)
    if not (lock.acquire(token=_OURS) or _taken_back(client, lock)):
        yield False
        return
    _held.add(str(lock.name))
    done = threading.Event()

    def renew() -> None:
        while not done.wait(LEASE_SECONDS / 3):
            # Redis may be restarting. A lease lost to another worker is met by the state's own version.
            with contextlib.suppress(redis.RedisError):
                lock.reacquire()

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        done.set()
        renewing.join()
        _held.discard(str(lock.name))
        with contextlib.suppress(redis.RedisError):
            lock.release()

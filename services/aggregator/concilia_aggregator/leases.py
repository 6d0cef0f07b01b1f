"""A hold that one worker has on what it works at, and that ends with the worker."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import redis

LEASE_SECONDS = 10.0
"""A killed worker's hold ends after this long; a living one renews it."""


@contextlib.contextmanager
def lease(client: redis.Redis, what: str) -> Iterator[bool]:
    """Hold something for as long as the block runs; yields whether it was to be had. Raises `redis.RedisError`."""
    lock = client.lock(f"concilia:lock:{what}", timeout=LEASE_SECONDS, blocking=False, thread_local=False)
    if not lock.acquire():
        yield False
        return
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
        with contextlib.suppress(redis.RedisError):
            lock.release()

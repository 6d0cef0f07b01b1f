"""Each hospital's own user at the broker: made when its node asks, good for its own keys, gone with its role.

A user may do with the keys under its prefix what a Celery worker does with a queue, and nothing else: no other key, no
channel, no script (one that never ends would stop everybody's queue), no command that administers. A node's processes
share the user, each with a password of its own that works for a day; Redis keeps their SHA-256 only.

What Redis keeps of its users it forgets with its memory. So who has which password is kept beside them, and whoever
looks (`sweep`) makes the users again that are missing, and ends those whose role is gone, with their connections.

Source: Redis ACL (redis.io, "ACL SETUSER"); Celery on Redis as kombu speaks it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import redis
from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.auth import BrokerCredential
from concilia_kit.wire.queues import keys_of

from concilia_auth.errors import StoreUnavailable
from concilia_auth.limits import Kind, Limits, NoLimits

LIFE = timedelta(days=1)
RENEWAL = timedelta(hours=12)
SWEEP_SECONDS = 5.0
MAX_PASSWORDS = 64
"""Of one hospital: as many of its processes as may ask in `LIFE`. The oldest makes room."""
COMMANDS = (
    *("ping", "hello", "auth", "select"),
    *("brpop", "rpop", "lpush", "rpush", "llen"),
    *("sadd", "smembers", "hset", "hget", "hdel", "hkeys", "hgetall", "hincrby", "zadd", "zrem", "zrange"),
    *("exists", "del", "watch", "unwatch", "multi", "exec", "discard"),
)
"""What kombu's consumer and a node's `redelivery` say."""
_KEPT = "concilia:auth:broker"

_log = logs.get(__name__)
_Kept = dict[str, float]
"""SHA-256 of a password, and Unix seconds until which it works."""


class Swept(NamedTuple):
    """What a look changed: users that were made again, and users that were ended."""

    restored: int
    ended: int


class BrokerUsers:
    """Of one Redis; `roles` tells which an address holds and raises `Problem`. Opens nothing before its first use.

    `client` decodes answers to text, and may administer the broker's users.
    """

    def __init__(
        self,
        client: redis.Redis,
        roles: Callable[[str], frozenset[Role]],
        clock: Callable[[], datetime],
        limits: Limits | None = None,
    ) -> None:
        self._redis: Any = client  # redis-py's types mix its synchronous and asynchronous answers
        self._roles = roles
        self._clock = clock
        self._limits = limits or NoLimits()
        self._one = threading.Lock()  # of one process's threads, each would only undo another's attempt

    def issue(self, address: str) -> BrokerCredential:
        """A password more for a hospital's user, which is made where it is not there. Raises `RateLimited`,
        `StoreUnavailable`."""
        self._limits.of_address(Kind.CREDENTIAL, address)
        now, password = self._clock(), secrets.token_urlsafe(32)

        def add(kept: _Kept) -> _Kept:
            lasting = dict(sorted(_live(kept, now).items(), key=lambda item: item[1])[-MAX_PASSWORDS + 1 :])
            return {**lasting, _hashed(password): (now + LIFE).timestamp()}

        try:
            self._change(address, add)
        except redis.RedisError as error:
            _log.error("broker credential not issued", address=address, error=f"{type(error).__name__}: {error}"[:200])
            raise StoreUnavailable("the broker does not answer, or lets nobody make users") from error
        _log.info("broker credential issued", address=address)
        return BrokerCredential(username=user_of(address), password=password, renew_at=now + RENEWAL)

    def sweep(self) -> Swept:
        """End users whose hospital lost its role or whose passwords are too old, make those again that the broker lost.

        Raises what redis-py raises; whose roles cannot be had at the moment stays as it is.
        """
        users, now = frozenset(self._redis.acl_users()), self._clock()
        restored = ended = 0
        for address, text in self._redis.hgetall(_KEPT).items():
            try:
                holds = Role.HOSPITAL in self._roles(address)
            except Problem as problem:
                _log.debug("role of a broker's user not known", code=problem.problem_code)
                holds = True
            kept: _Kept = json.loads(text)
            if not holds:
                self._change(address, lambda _: {})
                _log.warning("broker user ended: its hospital holds the role no more", address=address)
                ended += 1
            elif (live := _live(kept, now)) != kept or user_of(address) not in users:
                self._change(address, lambda kept: _live(kept, now))
                restored += bool(live) and user_of(address) not in users
        return Swept(restored, ended)

    def _change(self, address: str, change: Callable[[_Kept], _Kept]) -> None:
        """Change who has which password, and the user with it, as one step."""

        def attempt(pipe: Any) -> None:
            text = pipe.hget(_KEPT, address)
            kept = change(json.loads(text) if text else {})
            pipe.multi()
            if kept:
                pipe.hset(_KEPT, address, json.dumps(kept))
                pipe.execute_command("ACL", "SETUSER", user_of(address), *rules(address, kept))
            else:
                pipe.hdel(_KEPT, address)
                pipe.execute_command("ACL", "DELUSER", user_of(address))  # and ends its connections

        with self._one:
            self._redis.transaction(attempt, _KEPT)


class Sweeper(threading.Thread):
    """Sweeps until it is closed."""

    def __init__(self, users: BrokerUsers, seconds: float = SWEEP_SECONDS) -> None:
        super().__init__(name="broker-users", daemon=True)
        self._users = users
        self._seconds = seconds
        self._end = threading.Event()

    def run(self) -> None:
        """Look again and again. A broker that is away, or that this service may not administer, is told once."""
        said = ""
        while not self._end.wait(self._seconds):
            try:
                swept = self._users.sweep()
            except Exception as error:  # whatever it was, the next look may find it gone
                if (reason := f"{type(error).__name__}: {error}"[:200]) != said:
                    _log.warning("the broker's users were not looked at", reason=reason)
                said = reason
            else:
                said = ""
                if swept.restored:
                    _log.info("broker users made again", users=swept.restored)

    def close(self) -> None:
        """End, once a look that is under way has ended."""
        self._end.set()
        self.join(self._seconds)


def user_of(address: str) -> str:
    """The name of a hospital's user."""
    return keys_of(address).rstrip(":")


def rules(address: str, hashes: _Kept) -> list[str]:
    """What `ACL SETUSER` is told of a hospital's user: everything, whatever it was before."""
    may = [f"+{command}" for command in COMMANDS]
    return ["reset", "on", *(f"#{each}" for each in hashes), f"~{keys_of(address)}*", "resetchannels", "-@all", *may]


def _hashed(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _live(kept: _Kept, now: datetime) -> _Kept:
    return {each: until for each, until in kept.items() if now.timestamp() < until}

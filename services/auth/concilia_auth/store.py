"""Nonces, sessions and applications in Redis. Redis never sees a session's token, only its SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

import redis
from concilia_kit.signing import Address
from concilia_kit.wire.auth import FiledApplication
from pydantic import AwareDatetime, BaseModel, ConfigDict

from concilia_auth.errors import StoreUnavailable

_NONCE = "concilia:auth:nonce:"
_SIGNED_OUT = "concilia:auth:signed-out:"
_SESSION = "concilia:auth:session:"
_APPLICATIONS = "concilia:auth:applications"

APPLICATION_LIFE = timedelta(days=30)
MAX_APPLICATIONS = 1000


class SessionRecord(BaseModel):
    """Whose session it is, and when it ends at the latest."""

    model_config = ConfigDict(frozen=True)

    address: Address
    expires_at: AwareDatetime


class Store:
    """Opens no connection before its first use; every method raises `StoreUnavailable` where Redis does not answer.

    `client` decodes answers to text (`decode_responses=True`).
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def put_nonce(self, nonce: str, address: str, seconds: int) -> None:
        """Remember for `seconds` that `nonce` was given to `address`, unless its nonces are dropped before."""
        with translated():
            # How often it signed out is remembered for longer than any nonce that was given meanwhile.
            times = self._redis.getex(_SIGNED_OUT + address, ex=2 * seconds)
            self._redis.set(_NONCE + nonce, f"{int(times or 0)} {address}", ex=seconds)

    def take_nonce(self, nonce: str) -> str | None:
        """The address `nonce` was given to, and forget it, in one step: of any number of callers one gets it."""
        with translated():
            stored = self._redis.getdel(_NONCE + nonce)
            if stored is None:
                return None
            times, address = str(stored).split(" ")
            return address if int(times) == int(self._redis.get(_SIGNED_OUT + address) or 0) else None

    def drop_nonces(self, address: str, seconds: int) -> None:
        """Have no nonce count that was given to an address before now; nonces live `seconds`."""
        with translated(), self._redis.pipeline() as pipe:
            pipe.incr(_SIGNED_OUT + address)
            pipe.expire(_SIGNED_OUT + address, 2 * seconds)
            pipe.execute()

    def put_session(self, token: str, record: SessionRecord, idle_seconds: int) -> None:
        """Remember a session until it ends or was not used for `idle_seconds`."""
        with translated():
            self._redis.set(_key(token), record.model_dump_json(), ex=idle_seconds)

    def session(self, token: str, now: datetime, idle_seconds: int) -> SessionRecord | None:
        """A live session, which counts as its use. None where it has ended."""
        with translated():
            stored = self._redis.getex(_key(token), ex=idle_seconds)
        if stored is None:
            return None
        record = SessionRecord.model_validate_json(str(stored))
        return record if now < record.expires_at else None

    def drop_session(self, token: str) -> None:
        """Forget a session."""
        with translated():
            self._redis.delete(_key(token))

    def put_application(self, filed: FiledApplication) -> bool:
        """Keep an application in place of its address's last one; False where `MAX_APPLICATIONS` others live."""

        def attempt(pipe: redis.client.Pipeline) -> bool:
            ended: list[str] = []
            if not pipe.hexists(_APPLICATIONS, filed.address) and int(pipe.hlen(_APPLICATIONS)) >= MAX_APPLICATIONS:
                kept = _parsed(pipe.hvals(_APPLICATIONS))
                ended = [old.address for old in kept if not _lives(old, filed.filed_at)]
                if len(kept) - len(ended) >= MAX_APPLICATIONS:
                    return False
            pipe.multi()
            if ended:
                pipe.hdel(_APPLICATIONS, *ended)
            pipe.hset(_APPLICATIONS, filed.address, filed.model_dump_json())
            pipe.expire(_APPLICATIONS, APPLICATION_LIFE)  # of the last one, and so of all
            return True

        return self._unless_changed(attempt)

    def applications(self, now: datetime) -> list[FiledApplication]:
        """The applications that live, newest first."""
        with translated():
            kept = _parsed(self._redis.hvals(_APPLICATIONS))
        return sorted((filed for filed in kept if _lives(filed, now)), key=_age, reverse=True)

    def drop_application(self, address: str, now: datetime) -> bool:
        """Forget an address's application; whether there was one that lived."""
        with translated(), self._redis.pipeline() as pipe:
            pipe.hget(_APPLICATIONS, address)
            pipe.hdel(_APPLICATIONS, address)
            stored, _ = pipe.execute()
        return stored is not None and _lives(FiledApplication.model_validate_json(stored), now)

    def settle_application(self, filed: FiledApplication) -> None:
        """Forget an application, but not one that its address filed since."""

        def attempt(pipe: redis.client.Pipeline) -> bool:
            stored = pipe.hget(_APPLICATIONS, filed.address)
            if stored is None or FiledApplication.model_validate_json(str(stored)) != filed:
                return False
            pipe.multi()
            pipe.hdel(_APPLICATIONS, filed.address)
            return True

        self._unless_changed(attempt)

    def _unless_changed(self, attempt: Callable[[redis.client.Pipeline], bool]) -> bool:
        """Read and write as one step: where somebody else wrote in between, the attempt is made anew."""
        with translated(), self._redis.pipeline() as pipe:
            while True:
                pipe.watch(_APPLICATIONS)  # type: ignore[no-untyped-call]  # redis leaves it untyped
                done = attempt(pipe)
                with contextlib.suppress(redis.WatchError):
                    pipe.execute()
                    return done

    def answer(self) -> None:
        """A readiness check."""
        with translated():
            self._redis.ping()


def _key(token: str) -> str:
    return _SESSION + hashlib.sha256(token.encode()).hexdigest()


def _parsed(stored: Iterable[object]) -> list[FiledApplication]:
    return [FiledApplication.model_validate_json(str(text)) for text in stored]


def _lives(filed: FiledApplication, now: datetime) -> bool:
    return now < filed.filed_at + APPLICATION_LIFE


def _age(filed: FiledApplication) -> tuple[datetime, str]:
    return filed.filed_at, filed.address


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Have what Redis does not do raise `StoreUnavailable`."""
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailable(f"Redis does not answer ({type(error).__name__})") from error

"""Nonces and sessions in Redis. Redis never sees a session's token, only its SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from datetime import datetime

import redis
from concilia_kit.signing import Address
from pydantic import AwareDatetime, BaseModel, ConfigDict

from concilia_auth.errors import StoreUnavailable

_NONCE = "concilia:auth:nonce:"
_SESSION = "concilia:auth:session:"


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
        """Remember for `seconds` that `nonce` was given to `address`."""
        with _translated():
            self._redis.set(_NONCE + nonce, address, ex=seconds)

    def take_nonce(self, nonce: str) -> str | None:
        """The address `nonce` was given to, and forget it, in one step: of any number of callers one gets it."""
        with _translated():
            address = self._redis.getdel(_NONCE + nonce)
        return None if address is None else str(address)

    def put_session(self, token: str, record: SessionRecord, idle_seconds: int) -> None:
        """Remember a session until it ends or was not used for `idle_seconds`."""
        with _translated():
            self._redis.set(_key(token), record.model_dump_json(), ex=idle_seconds)

    def session(self, token: str, now: datetime, idle_seconds: int) -> SessionRecord | None:
        """A live session, which counts as its use. None where it has ended."""
        with _translated():
            stored = self._redis.getex(_key(token), ex=idle_seconds)
        if stored is None:
            return None
        record = SessionRecord.model_validate_json(str(stored))
        return record if now < record.expires_at else None

    def drop_session(self, token: str) -> None:
        """Forget a session."""
        with _translated():
            self._redis.delete(_key(token))

    def answer(self) -> None:
        """A readiness check."""
        with _translated():
            self._redis.ping()


def _key(token: str) -> str:
    return _SESSION + hashlib.sha256(token.encode()).hexdigest()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailable(f"Redis does not answer ({type(error).__name__})") from error

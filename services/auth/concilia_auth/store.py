"""Nonces, sessions and applications in Redis. Redis never sees a session's token, only its SHA-256, which is its id."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import redis
from concilia_kit.signing import Address
from concilia_kit.wire.auth import FiledApplication
from pydantic import AwareDatetime, BaseModel, ConfigDict

from concilia_auth.errors import StoreUnavailable

_NONCE = "concilia:auth:nonce:"
_SIGNED_OUT = "concilia:auth:signed-out:"
_SESSION = "concilia:auth:session:"
_SESSIONS_OF = "concilia:auth:sessions-of:"
_TOKENS_OF = "concilia:auth:tokens-of:"
_ENDED = "concilia:auth:ended"
_APPLICATIONS = "concilia:auth:applications"

APPLICATION_LIFE = timedelta(days=30)
MAX_APPLICATIONS = 1000
MAX_LISTED = 100
"""Sessions of one address that are told, the newest."""

_AT_ONCE = 500  # sessions ended by one script, which nobody else gets between
_MARGIN = 5  # seconds for which a session is told as ended beyond its last token

# In one step, so that a token is either told as of an ended session or refused to who asks for it (`note_token`).
_END = """
local ended = 0
for each = 3, #ARGV do
  local id = ARGV[each]
  ended = ended + redis.call('DEL', KEYS[1] .. id)
  redis.call('ZREM', KEYS[4], id)
  local left = redis.call('PTTL', KEYS[2] .. id)
  if left > 0 then
    redis.call('ZADD', KEYS[3], ARGV[1] + left / 1000, id)
    redis.call('EXPIRE', KEYS[3], ARGV[2])
  end
end
return ended
"""


class SessionRecord(BaseModel):
    """Whose session it is, when it ends at the latest, and from which program and system it was opened."""

    model_config = ConfigDict(frozen=True)

    address: Address
    expires_at: AwareDatetime
    device: str = ""


class ListedSession(NamedTuple):
    """A session that lives: its id, what is known of it, when it was opened and last used."""

    id: str
    record: SessionRecord
    opened_at: datetime
    used_at: datetime


class Store:
    """Opens no connection before its first use; every method raises `StoreUnavailable` where Redis does not answer.

    `client` decodes answers to text (`decode_responses=True`).
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._end = client.register_script(_END)

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

    def put_session(self, token: str, record: SessionRecord, idle_seconds: int, now: datetime) -> None:
        """Remember a session, opened now, until it ends or was not used for `idle_seconds`."""
        mine, life = _SESSIONS_OF + record.address, record.expires_at - now
        with translated(), self._redis.pipeline() as pipe:
            pipe.set(_SESSION + session_id(token), record.model_dump_json(), ex=idle_seconds)
            pipe.zremrangebyscore(mine, "-inf", (now - life).timestamp())
            pipe.zadd(mine, {session_id(token): now.timestamp()})
            pipe.expire(mine, max(1, int(life.total_seconds())))  # of the last one, and so of all
            pipe.execute()

    def session(self, token: str, now: datetime, idle_seconds: int) -> SessionRecord | None:
        """A live session, which counts as its use. None where it has ended."""
        with translated():
            stored = self._redis.getex(_SESSION + session_id(token), ex=idle_seconds)
        if stored is None:
            return None
        record = SessionRecord.model_validate_json(str(stored))
        return record if now < record.expires_at else None

    def is_live(self, session: str) -> bool:
        """Whether a session lives, by its id; this is no use of it."""
        with translated():
            return bool(self._redis.exists(_SESSION + session))

    def note_token(self, session: str, seconds: int) -> bool:
        """Remember that a token with roles is taken that lives `seconds`; False where the session ended meanwhile."""
        with translated(), self._redis.pipeline() as pipe:
            pipe.set(_TOKENS_OF + session, "", ex=seconds + _MARGIN)
            pipe.exists(_SESSION + session)
            return bool(pipe.execute()[1])

    def sessions(self, address: str, now: datetime, idle_seconds: int) -> list[ListedSession]:
        """An address's sessions that live, the `MAX_LISTED` newest, newest first."""
        mine = _SESSIONS_OF + address
        with translated(), self._redis.pipeline() as pipe:
            newest = self._redis.zrange(mine, 0, MAX_LISTED - 1, desc=True, withscores=True)
            opened = [(str(session), float(score)) for session, score in map(tuple, newest)]
            for session, _ in opened:
                pipe.get(_SESSION + session)
                pipe.pttl(_SESSION + session)
            told = iter(pipe.execute())
        found = []
        for (session, score), stored, left in zip(opened, told, told, strict=False):
            if stored is None:
                continue
            record = SessionRecord.model_validate_json(stored)
            began = datetime.fromtimestamp(score, UTC)
            used = now - timedelta(seconds=idle_seconds) + timedelta(milliseconds=left)  # each use sets the time anew
            if now < record.expires_at:
                found.append(ListedSession(session, record, began, max(began, min(used, now))))
        return found

    def session_ids(self, address: str) -> list[str]:
        """Ids of all sessions that an address may have."""
        with translated():
            return list(map(str, self._redis.zrange(_SESSIONS_OF + address, 0, -1)))

    def opened_at(self, address: str, session: str) -> datetime | None:
        """When a session of an address was opened, by its id; None for what is none of this one's."""
        with translated():
            found = self._redis.zscore(_SESSIONS_OF + address, session)
        return None if found is None else datetime.fromtimestamp(float(found), UTC)

    def end_sessions(self, address: str, sessions: Sequence[str], now: datetime, token_seconds: int) -> int:
        """Forget sessions of an address, by their ids; those with tokens that live on are told as ended until these
        have ended, `token_seconds` at most. How many there were."""
        keys = (_SESSION, _TOKENS_OF, _ENDED, _SESSIONS_OF + address)
        life = token_seconds + 2 * _MARGIN
        with translated():
            return sum(
                int(self._end(keys, (now.timestamp(), life, *sessions[first : first + _AT_ONCE])))
                for first in range(0, len(sessions), _AT_ONCE)
            )

    def ended_sessions(self, now: datetime) -> list[str]:
        """Ids of the sessions that were ended while tokens of theirs live on, in order."""
        with translated(), self._redis.pipeline() as pipe:
            pipe.zremrangebyscore(_ENDED, "-inf", now.timestamp())
            pipe.zrange(_ENDED, 0, -1)
            return sorted(map(str, pipe.execute()[1]))

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


def session_id(token: str) -> str:
    """A session's id: the SHA-256 of its token, which has too many bits for anybody to go back."""
    return hashlib.sha256(token.encode()).hexdigest()


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

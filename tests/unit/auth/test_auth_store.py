"""Nonces and sessions on a real Redis."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import redis
from concilia_auth.errors import StoreUnavailable
from concilia_auth.store import SessionRecord, Store, session_id

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
RECORD = SessionRecord(address=ADDRESS, expires_at=NOW + timedelta(hours=12))


def test_auth_store_nonce_is_taken_once(store: Store) -> None:
    store.put_nonce("abcdefgh", ADDRESS, 300)
    assert store.take_nonce("abcdefgh") == ADDRESS
    assert store.take_nonce("abcdefgh") is None
    assert store.take_nonce("neverseen") is None


def test_auth_store_one_of_a_hundred_threads_gets_a_nonce(store: Store) -> None:
    store.put_nonce("abcdefgh", ADDRESS, 300)
    together = threading.Barrier(100)

    def take(_: int) -> str | None:
        together.wait()
        return store.take_nonce("abcdefgh")

    with ThreadPoolExecutor(100) as pool:
        taken = list(pool.map(take, range(100)))
    assert [address for address in taken if address is not None] == [ADDRESS]


def test_auth_store_nonce_expires(store: Store, redis_connection: redis.Redis) -> None:
    store.put_nonce("abcdefgh", ADDRESS, 300)
    (key,) = redis_connection.keys("*")
    assert 0 < redis_connection.ttl(key) <= 300
    redis_connection.pexpire(key, 1)
    while redis_connection.exists(key):
        pass
    assert store.take_nonce("abcdefgh") is None


def test_auth_store_drops_the_nonces_of_one_address(store: Store) -> None:
    other = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
    store.put_nonce("before-1", ADDRESS, 300)
    store.put_nonce("before-2", ADDRESS, 300)
    store.put_nonce("another", other, 300)
    store.drop_nonces(ADDRESS, 300)
    store.put_nonce("after-01", ADDRESS, 300)
    store.drop_nonces(other, 300)
    assert [store.take_nonce(each) for each in ("before-1", "before-2", "another")] == [None, None, None]
    assert store.take_nonce("after-01") == ADDRESS


def test_auth_store_remembers_a_drop_for_longer_than_any_nonce(store: Store, redis_connection: redis.Redis) -> None:
    store.drop_nonces(ADDRESS, 300)
    (key,) = redis_connection.keys("*")
    assert redis_connection.ttl(key) > 300
    redis_connection.expire(key, 10)
    store.put_nonce("abcdefgh", ADDRESS, 300)  # which would outlive it
    assert redis_connection.ttl(key) > 300


def test_auth_store_keeps_no_session_token(store: Store, redis_connection: redis.Redis) -> None:
    store.put_session("a-secret-token", RECORD, 60, NOW)
    (key,) = redis_connection.keys("concilia:auth:session:*")
    assert key.endswith(hashlib.sha256(b"a-secret-token").hexdigest())
    listed = redis_connection.zrange(f"concilia:auth:sessions-of:{ADDRESS}", 0, -1)
    assert "a-secret-token" not in key + redis_connection.get(key) + "".join(listed)
    assert len(redis_connection.keys("*")) == 2


def test_auth_store_session_ends_at_its_time(store: Store) -> None:
    store.put_session("token", RECORD, 60, NOW)
    assert store.session("token", RECORD.expires_at - timedelta(seconds=1), 60) == RECORD
    assert store.session("token", RECORD.expires_at, 60) is None


def test_auth_store_use_renews_the_idle_time(store: Store, redis_connection: redis.Redis) -> None:
    store.put_session("token", RECORD, 60, NOW)
    (key,) = redis_connection.keys("concilia:auth:session:*")
    redis_connection.expire(key, 30)
    assert store.session("token", NOW, 60) == RECORD
    assert redis_connection.ttl(key) > 30


def test_auth_store_dropped_session_is_gone_and_stays_gone(store: Store, redis_connection: redis.Redis) -> None:
    store.put_session("token", RECORD, 60, NOW)
    assert store.end_sessions(ADDRESS, [session_id("token")], NOW, 300) == 1
    assert store.session("token", NOW, 60) is None
    assert redis_connection.dbsize() == 0


def test_auth_store_says_when_redis_is_away() -> None:
    with redis.Redis(port=1, retry=None) as nobody:
        store = Store(nobody)
        for work in (
            store.answer,
            lambda: store.put_nonce("abcdefgh", ADDRESS, 1),
            lambda: store.take_nonce("abcdefgh"),
            lambda: store.drop_nonces(ADDRESS, 1),
            lambda: store.put_session("token", RECORD, 1, NOW),
            lambda: store.session("token", NOW, 1),
            lambda: store.end_sessions(ADDRESS, [session_id("token")], NOW, 1),
            lambda: store.note_token(session_id("token"), 1),
            lambda: store.is_live(session_id("token")),
            lambda: store.sessions(ADDRESS, NOW, 1),
            lambda: store.session_ids(ADDRESS),
            lambda: store.opened_at(ADDRESS, session_id("token")),
            lambda: store.ended_sessions(NOW),
        ):
            with pytest.raises(StoreUnavailable):
                work()

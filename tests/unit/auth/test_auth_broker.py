"""Hospitals' users at the broker, on a real Redis: what they may, how long, and that they go with the role."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from concilia_auth import broker
from concilia_auth.broker import BrokerUsers, Sweeper
from concilia_auth.errors import RateLimited, StoreUnavailable
from concilia_auth.limits import RateLimits
from concilia_auth.metrics import AuthMetrics
from concilia_kit.problems import Unavailable
from concilia_kit.roles import Role
from concilia_kit.wire.auth import BrokerCredential
from concilia_kit.wire.queues import keys_of, queue_of
from redis.exceptions import NoPermissionError

HOSPITAL = "0x" + 20 * "aA"
OTHER = "0x" + 20 * "bB"


class World:
    """A consortium's roles and clock, set by hand, and its broker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self.roles = {HOSPITAL: frozenset({Role.HOSPITAL}), OTHER: frozenset({Role.HOSPITAL})}
        self.now = datetime.now(UTC)
        self.users = BrokerUsers(self.redis, self.of, lambda: self.now)

    def of(self, address: str) -> frozenset[Role]:
        if address not in self.roles:
            raise Unavailable("roles cannot be had")
        return self.roles[address]

    def connect(self, credential: BrokerCredential) -> Any:
        return redis.Redis.from_url(self.url, username=credential.username, password=credential.password)

    def works(self, credential: BrokerCredential) -> bool:
        with self.connect(credential) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return False


@pytest.fixture
def world(redis_url: str) -> Iterator[World]:
    world = World(redis_url)
    yield world
    for user in set(world.redis.acl_users()) - {"default"}:
        world.redis.acl_deluser(user)
    world.redis.close()


def test_a_user_works_at_its_own_queue_and_touches_no_other_key(world: World) -> None:
    mine, others = world.users.issue(HOSPITAL), world.users.issue(OTHER)
    with world.connect(mine) as client:
        assert client.lpush(queue_of(HOSPITAL), b"x") == 1
        assert client.brpop([queue_of(HOSPITAL)], timeout=1) == (queue_of(HOSPITAL).encode(), b"x")
        for key in (queue_of(OTHER), keys_of(HOSPITAL)[:-1], "concilia:auth:broker", "_kombu.binding.aggregator"):
            with pytest.raises(NoPermissionError):
                client.lpush(key, b"x")
    assert world.works(others)


def test_each_password_works_until_it_is_too_old_and_the_oldest_makes_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.users.issue(HOSPITAL)
    world.now += timedelta(hours=1)
    second = world.users.issue(HOSPITAL)
    assert (first.username, world.works(first), world.works(second)) == (second.username, True, True)
    assert first.renew_at < world.now + broker.LIFE
    world.now += broker.LIFE - timedelta(minutes=30)
    assert world.users.sweep() == (0, 0)
    assert (world.works(first), world.works(second)) == (False, True)
    monkeypatch.setattr(broker, "MAX_PASSWORDS", 3)
    issued = [second, *(world.users.issue(HOSPITAL) for _ in range(3))]
    assert [world.works(each) for each in issued] == [False, True, True, True]


def test_a_role_that_is_taken_ends_the_user_and_its_open_connections(world: World) -> None:
    mine, others = world.users.issue(HOSPITAL), world.users.issue(OTHER)
    with world.connect(mine) as client:
        client.ping()
        taken: list[object] = []

        def wait_for_work() -> None:
            try:
                taken.append(client.brpop([queue_of(HOSPITAL)], timeout=0))
            except redis.RedisError as error:
                taken.append(error)

        waiting = threading.Thread(target=wait_for_work)
        waiting.start()
        world.roles[HOSPITAL] = frozenset()
        assert world.users.sweep() == (0, 1)
        waiting.join(10)
        assert len(taken) == 1
        assert isinstance(taken[0], redis.ConnectionError)
    assert (world.works(mine), world.works(others)) == (False, True)
    assert world.users.sweep() == (0, 0)


def test_whose_roles_cannot_be_had_keeps_its_user(world: World) -> None:
    mine = world.users.issue(HOSPITAL)
    del world.roles[HOSPITAL]
    assert world.users.sweep() == (0, 0)
    assert world.works(mine)


def test_users_that_the_broker_forgot_are_made_again_with_their_passwords(world: World) -> None:
    credentials = [world.users.issue(HOSPITAL), world.users.issue(HOSPITAL), world.users.issue(OTHER)]
    world.redis.acl_deluser(broker.user_of(HOSPITAL), broker.user_of(OTHER))  # as its restart does
    assert world.users.sweep() == (2, 0)
    assert all(map(world.works, credentials))


def test_many_may_ask_at_one_time(world: World) -> None:
    twin = BrokerUsers(world.redis, world.of, lambda: world.now)
    issued: list[BrokerCredential] = []
    threads = [
        threading.Thread(target=lambda users=users: issued.append(users.issue(HOSPITAL)))
        for users in (world.users, twin)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(issued) == 16
    assert all(map(world.works, issued))


def test_who_asks_for_passwords_too_often_is_told_to_come_back(world: World) -> None:
    limits = RateLimits(world.redis, 2, 0, AuthMetrics())
    users = BrokerUsers(world.redis, world.of, lambda: world.now, limits)
    kept = [users.issue(HOSPITAL), users.issue(HOSPITAL)]
    with pytest.raises(RateLimited):
        users.issue(HOSPITAL)
    assert all(map(world.works, kept))
    users.issue(OTHER)


def test_no_password_is_kept_or_shown(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    credential = world.users.issue(HOSPITAL)
    kept = str(world.redis.hgetall("concilia:auth:broker")) + str(world.redis.acl_getuser(credential.username))
    assert credential.password not in kept + repr(credential) + "".join(capsys.readouterr())


def test_a_broker_that_is_away_is_said_and_looked_at_again(free_port: Any, capsys: pytest.CaptureFixture[str]) -> None:
    away = World(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreUnavailable, match="the broker does not answer"):
        away.users.issue(HOSPITAL)
    looks = threading.Semaphore(0)

    class Users:
        def sweep(self) -> None:
            looks.release()
            raise redis.ConnectionError("away")

    sweeper = Sweeper(Users(), 0.01)  # type: ignore[arg-type]
    sweeper.start()
    assert all(looks.acquire(timeout=10) for _ in range(3))
    sweeper.close()
    assert not sweeper.is_alive()

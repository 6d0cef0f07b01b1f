"""What a thief of a node's credential can do at the broker: work at that node's queue. Real Redis, with a password."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from celery import Celery
from concilia_auth.broker import COMMANDS, BrokerUsers
from concilia_client_node.broker import Credentials, Transport
from concilia_client_node.redelivery import Siblings, transport_options
from concilia_kit import queue
from concilia_kit.roles import Role
from concilia_kit.wire.queues import OWN_QUEUE, keys_of, queue_of
from concilia_kit.wire.training import TRAIN_TASK
from redis.exceptions import NoPermissionError

MINE, THEIRS = "0x" + 20 * "aA", "0x" + 20 * "bB"
SERVICES = (
    "aggregator",
    "concilia:ledger",
    "concilia:auth:broker",
    "concilia:auth:nonce:x",
    "_kombu.binding.aggregator",
)
ELSEWHERE = (
    queue_of(THEIRS),
    f"{queue_of(THEIRS)}.unacked.1",
    f"{queue_of(THEIRS)}.beats",
    keys_of(MINE)[:-1],
    *SERVICES,
)

FORBIDDEN: tuple[tuple[str, ...], ...] = (
    *(
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SWAPDB", "0", "1"),
        ("SAVE",),
        ("BGSAVE",),
        ("BGREWRITEAOF",),
        ("SHUTDOWN", "NOSAVE"),
    ),
    *(("CONFIG", "GET", "*"), ("CONFIG", "SET", "requirepass", ""), ("CONFIG", "REWRITE"), ("DEBUG", "SLEEP", "0")),
    *(("ACL", "LIST"), ("ACL", "GETUSER", "default"), ("ACL", "SETUSER", "thief", "on"), ("ACL", "DELUSER", "x")),
    *(("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", "1000"), ("CLIENT", "UNPAUSE")),
    *(("MONITOR",), ("INFO",), ("SLOWLOG", "GET"), ("LATENCY", "RESET"), ("MEMORY", "DOCTOR"), ("LASTSAVE",)),
    *(("REPLICAOF", "NO", "ONE"), ("MODULE", "LOAD", "/tmp/x.so"), ("CLUSTER", "INFO"), ("ROLE",), ("FAILOVER",)),
    *(("KEYS", "*"), ("SCAN", "0"), ("RANDOMKEY",), ("DBSIZE",), ("OBJECT", "ENCODING", queue_of(MINE))),
    *(
        ("EVAL", "while true do end", "0"),
        ("EVALSHA", "0" * 40, "0"),
        ("SCRIPT", "LOAD", "return 1"),
        ("SCRIPT", "FLUSH"),
    ),
    *(("SUBSCRIBE", "x"), ("PSUBSCRIBE", "*"), ("PUBLISH", "x", "y"), ("PUBSUB", "CHANNELS")),
    *(("RENAME", queue_of(MINE), queue_of(THEIRS)), ("COPY", queue_of(THEIRS), queue_of(MINE))),
    *(("LMOVE", queue_of(THEIRS), queue_of(MINE), "LEFT", "LEFT"), ("RPOPLPUSH", queue_of(THEIRS), queue_of(MINE))),
    *(("DUMP", queue_of(THEIRS)), ("MIGRATE", "127.0.0.1", "1", queue_of(MINE), "0", "1"), ("SORT", queue_of(THEIRS))),
    *(
        ("LRANGE", queue_of(THEIRS), "0", "-1"),
        ("LTRIM", queue_of(THEIRS), "1", "0"),
        ("EXPIRE", queue_of(THEIRS), "1"),
    ),
    *(
        ("GET", "concilia:auth:nonce:x"),
        ("SET", "concilia:auth:nonce:x", "y"),
        ("XADD", "concilia:ledger", "*", "a", "b"),
    ),
    *(("LPUSH", key, "x") for key in ELSEWHERE),
    *(("RPUSH", key, "x") for key in ELSEWHERE),
    *(("RPOP", key) for key in ELSEWHERE),
    *(("BRPOP", key, "0.1") for key in ELSEWHERE),
    *(("BRPOP", queue_of(MINE), key, "0.1") for key in ELSEWHERE),
    *(("LLEN", key) for key in ELSEWHERE),
    *(("DEL", key) for key in ELSEWHERE),
    *(("EXISTS", key) for key in ELSEWHERE),
    *(("WATCH", key) for key in ELSEWHERE),
    *(("HGETALL", key) for key in ELSEWHERE),
    *(("HSET", key, "a", "b") for key in ELSEWHERE),
    *(("HDEL", key, "a") for key in ELSEWHERE),
    *(("HINCRBY", key, "a", "1") for key in ELSEWHERE),
    *(("ZADD", key, "0", "a") for key in ELSEWHERE),
    *(("ZREM", key, "a") for key in ELSEWHERE),
    *(("SADD", key, "a") for key in ELSEWHERE),
    *(("SMEMBERS", key) for key in ELSEWHERE),
)


@pytest.fixture
def services_url(redis_url: str) -> Iterator[str]:
    """The broker as the services reach it: with the password that it asks of everybody."""
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("requirepass", "services")
    yield redis_url.replace("://", "://:services@")
    with redis.Redis.from_url(redis_url, password="services") as client:
        client.config_set("requirepass", "")


@pytest.fixture
def server(services_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(services_url, decode_responses=True) as client:
        yield client
        for user in set(client.acl_users()) - {"default"}:
            client.acl_deluser(user)


@pytest.fixture
def credentials(server: Any) -> dict[str, Credentials]:
    users = BrokerUsers(server, lambda _: frozenset({Role.HOSPITAL}), lambda: datetime.now(UTC))
    return {
        address: Credentials(lambda address=address: users.issue(address))  # type: ignore[misc]
        for address in (MINE, THEIRS)
    }


@pytest.fixture
def stolen(redis_url: str, credentials: dict[str, Credentials]) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url, credential_provider=credentials[MINE], decode_responses=True) as client:
        client.ping()
        yield client


def keyspace(server: Any) -> dict[str, Any]:
    return {key: server.dump(key) for key in server.keys("*")}


def test_a_stolen_credential_is_refused_every_command_and_key_that_is_not_its_own(
    services_url: str, server: Any, stolen: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with queue.application("aggregator", services_url) as aggregator:
        for address in (MINE, THEIRS):
            aggregator.send_task(TRAIN_TASK, kwargs={"task": {}}, queue=queue_of(address))
    before = keyspace(server)
    passed = []
    for call in FORBIDDEN:
        try:
            answer = stolen.execute_command(*call)
        except NoPermissionError:
            continue
        except redis.RedisError as error:
            answer = error
        passed.append((call, answer))
    assert passed == []
    assert keyspace(server) == before
    with capsys.disabled():
        names = sorted({call[0] for call in FORBIDDEN})
        print(f"\nbroker: {len(FORBIDDEN)} calls of {len(names)} commands refused: {', '.join(names)}")


def test_of_all_commands_that_the_broker_knows_only_the_listed_ones_are_allowed(server: Any, stolen: Any) -> None:
    known = {str(entry["name"]).lower(): entry for entry in server.command().values()}
    allowed = []
    for name, entry in known.items():
        arguments = ["x"] * max(0, abs(int(entry["arity"])) - 1)
        try:
            stolen.execute_command(name, *arguments)
        except NoPermissionError as error:
            if "access" not in str(error):  # to a key: the command itself is allowed
                continue
        except redis.RedisError:
            stolen.connection_pool.disconnect()
        allowed.append(name)
    # Known before anybody is asked who he is.
    assert set(allowed) - {"reset", "quit"} <= set(COMMANDS)


def test_the_own_queue_works_with_all_that_a_node_does(
    redis_url: str, services_url: str, credentials: dict[str, Credentials], server: Any
) -> None:
    with queue.application("aggregator", services_url) as aggregator:
        aggregator.send_task(TRAIN_TASK, kwargs={"task": {"a": 1}}, queue=queue_of(MINE))
        aggregator.send_task(TRAIN_TASK, kwargs={"task": {"a": 2}}, queue=queue_of(THEIRS))
    worker: Celery = queue.application("client-node", redis_url)
    worker.conf.update(broker_transport=Transport)
    with redis.Redis.from_url(redis_url, credential_provider=credentials[MINE]) as broker:
        options = {**transport_options(keys_of(MINE), OWN_QUEUE, "p"), "credentials": credentials[MINE]}
        worker.conf.broker_transport_options = options
        siblings = Siblings(worker, keys_of(MINE), OWN_QUEUE, "p", broker, lambda: ())
        with worker.connection_for_read() as connection:
            channel: Any = connection.default_channel
            assert not siblings.idle()
            message = channel.basic_get(OWN_QUEUE)
            assert message.headers["task"] == TRAIN_TASK
            assert channel.basic_get(OWN_QUEUE) is None
            message.reject(requeue=True)
            assert server.llen(queue_of(MINE)) == 1
            channel.basic_get(OWN_QUEUE)
            channel.do_restore = False
            assert sum(siblings.look() for _ in range(10)) == 1  # nobody has it in hand
            channel.basic_get(OWN_QUEUE).ack()
            assert siblings.idle()
        worker.send_task(TRAIN_TASK, kwargs={"task": {"a": 3}}, queue=OWN_QUEUE)  # another try
        assert server.llen(queue_of(MINE)) == 1
    worker.close()
    assert server.llen(queue_of(THEIRS)) == 1

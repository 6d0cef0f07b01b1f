"""Fixtures that any test may use: a real Redis, and free ports."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as redis_client
from concilia.stack import redis_server
from hypothesis import settings

# Nothing asserts on time: a busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port nobody listens on, at the time of asking."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], int]:
    """The first of so many ports in a row that nobody listens on, at the time of asking."""

    def find(count: int) -> int:
        # From a place of its own each process: two suites at one time would find the same ones free.
        for first in range(20000 + os.getpid() % 300 * 100, 60000, count):
            try:
                for port in range(first, first + count):
                    with socket.socket() as probe:
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
        raise AssertionError("no free ports")

    return find


@dataclass(frozen=True)
class RedisServer:
    """A real Redis, and what it says."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def check(self) -> None:
        if (status := self.process.poll()) is not None:
            pytest.fail(f"redis-server ended by itself with {status}: {self.log.read_text()[-2000:]}")

    def wait(self) -> None:
        with redis_client.Redis(port=self.port) as client:
            for _ in range(200):
                self.check()
                with contextlib.suppress(redis_client.ConnectionError):
                    # Another one on this port answers as well, until it ends.
                    assert client.info("server")["process_id"] == self.process.pid
                    return
                time.sleep(0.05)
        pytest.fail(f"redis-server did not answer within 10 s: {self.log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def redis_server_of_the_session(
    free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    port, directory = free_port(), tmp_path_factory.mktemp("redis")
    log = directory / "server.log"
    with log.open("wb") as told, subprocess.Popen(redis_server.command(port, directory), stdout=told) as process:
        server = RedisServer(port, log, process)
        try:
            server.wait()
            yield server
            server.check()
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def redis_server_url(redis_server_of_the_session: RedisServer) -> str:
    """A real Redis for the session."""
    return redis_server_of_the_session.url


@pytest.fixture
def redis_url(redis_server_of_the_session: RedisServer) -> str:
    """The session's Redis, emptied."""
    redis_server_of_the_session.check()
    with redis_client.Redis.from_url(redis_server_of_the_session.url) as client:
        client.flushall()
    return redis_server_of_the_session.url

"""Fixtures that any test may use: a real Redis, and free ports."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def redis_server_url(free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis for the session."""
    port = free_port()
    directory: Path = tmp_path_factory.mktemp("redis")
    log = directory / "server.log"
    with log.open("wb") as told, subprocess.Popen(redis_server.command(port, directory), stdout=told) as server:
        with redis_client.Redis(port=port) as client:
            for _ in range(200):
                with contextlib.suppress(redis_client.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.05)
            else:
                pytest.fail("redis-server did not answer within 10 s")
        yield f"redis://127.0.0.1:{port}/0"
        if server.poll() is not None:
            pytest.fail(f"redis-server ended by itself with {server.returncode}: {log.read_text()[-2000:]}")
        server.terminate()


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The session's Redis, emptied."""
    with redis_client.Redis.from_url(redis_server_url) as client:
        client.flushall()
    return redis_server_url

"""Replicas that start together on an empty Postgres: one of them migrates, all of them go on."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from concilia_kit import database

from .conftest import free_port

REPLICAS = 4
PASSWORD = "only-for-this-test"
# Imports first, then wait for the word to go: the replicas meet at the lock, not at the interpreter's start.
REPLICA = """
import sys
from pathlib import Path
from concilia_kit import database
engine = database.engine(sys.argv[1])
import alembic.command, alembic.runtime.migration
print("ready", flush=True)
sys.stdin.readline()
database.migrate(engine, Path(sys.argv[2]))
print("migrated", flush=True)
"""


def connected(url: str) -> sa.Engine:
    """An engine that keeps no connection open."""
    return sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a Postgres of this module's own, without the database's name."""
    port = free_port()
    options = ("--rm", "--detach", "--publish", f"127.0.0.1:{port}:5432", "--env", f"POSTGRES_PASSWORD={PASSWORD}")
    started = subprocess.run(
        ["docker", "run", *options, "postgres:15-bookworm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if started.returncode:
        pytest.fail(f"no Docker engine answers, these tests need one: {started.stderr}")
    container = started.stdout.strip()
    url = f"postgresql+psycopg://postgres:{PASSWORD}@127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                database.answer(connected(f"{url}/postgres"))
                break
            except sa.exc.OperationalError:
                assert time.monotonic() < deadline, "Postgres did not start within a minute"
                time.sleep(0.3)
        yield url
    finally:
        subprocess.run(["docker", "stop", "--time", "2", container], capture_output=True, check=False)


@pytest.mark.parametrize("package", ["concilia_model", "concilia_aggregator", "concilia_chain"])
def test_replicas_that_start_together_migrate_once(postgres: str, package: str) -> None:
    with connected(f"{postgres}/postgres").connect() as admin:
        admin.execute(sa.text(f"CREATE DATABASE {package}"))
    url = f"{postgres}/{package}"
    origin = importlib.import_module(package).__file__
    assert origin is not None
    migrations = Path(origin).parent / "migrations"
    replicas = [
        subprocess.Popen(
            [sys.executable, "-c", REPLICA, url, str(migrations)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(REPLICAS)
    ]
    for replica in replicas:
        assert replica.stdout is not None
        assert replica.stdout.readline() == "ready\n"
    for replica in replicas:
        assert replica.stdin is not None
        replica.stdin.write("\n")
        replica.stdin.flush()
    for replica in replicas:
        out, err = replica.communicate(timeout=60)
        assert (replica.returncode, out) == (0, "migrated\n"), err
    with connected(url).connect() as connection:
        assert len(sa.inspect(connection).get_table_names()) > 1
        assert len(connection.execute(sa.text("SELECT version_num FROM alembic_version")).all()) == 1

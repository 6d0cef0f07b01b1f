"""A service's own database, SQLite or Postgres by URL, brought to the newest schema by its own migrations.

SQLite runs in write-ahead mode with foreign keys on; its transactions take the write lock at once, and are short. Those
that only read take none: they see the database as it was when they began, and neither wait for a writer nor hold one
up.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

_READS_ONLY = "concilia_reads_only"
_THREADS = 40
"""As many as a service works with at once."""
_MIGRATION_LOCK = 0x636F6E63  # one advisory lock for all replicas that start together


def engine(url: str) -> sa.Engine:
    """An engine; opens no connection. Raises `sqlalchemy.exc.ArgumentError` for a malformed URL."""
    if sa.make_url(url).get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    # A file does not go away between two transactions. A connection kept has pages of it in memory, one opened anew has
    # none: as many as there are threads may be kept, and those used last are used first.
    made = sa.create_engine(url, pool_size=_THREADS, pool_use_lifo=True)
    event.listen(made, "connect", _on_sqlite_connect)
    event.listen(made, "begin", _on_sqlite_begin)
    return made


def reading(database: sa.Engine) -> sa.Engine:
    """The same database for transactions that only read; what writes through it may be refused as busy."""
    return database.execution_options(**{_READS_ONLY: True})


def migrate(database: sa.Engine, migrations: Path) -> None:
    """Bring the schema to the newest revision; safe when two replicas start together.

    `migrations` is the folder with Alembic's `env.py`, which takes the connection from
    `config.attributes["connection"]`.
    """
    if _revision(database) == newest(migrations):
        return
    from alembic import command  # needed once in the life of a schema, and as large as the rest of this module
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    with database.begin() as connection:  # SQLite: BEGIN IMMEDIATE is the lock
        if database.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def migrate_apart(url: str, migrations: Path) -> None:
    """The same in a process of its own, whose memory is gone with it. Ends this process with that one's exit code where
    it fails; its words are on standard error."""
    made = engine(url)
    try:
        if _revision(made) == newest(migrations):
            return
    finally:
        made.dispose()
    # The URL may have a password in it: not on the command line.
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "concilia_kit.migrating", str(migrations)], input=url.encode(), check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode)


def newest(migrations: Path) -> str:
    """The newest revision in a folder of migrations: files are named by their revision, a number, first."""
    return max(path.name.split("_")[0] for path in (migrations / "versions").glob("[0-9]*.py"))


def _revision(database: sa.Engine) -> str | None:
    """The revision that a schema has, None where nothing was migrated yet."""
    with reading(database).begin() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def answer(database: sa.Engine) -> None:
    """A readiness check. Raises `sqlalchemy.exc.DBAPIError` where the database does not answer."""
    with database.connect() as connection:
        connection.execute(sa.text("SELECT 1"))


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; see _on_sqlite_begin
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _on_sqlite_begin(connection: sa.Connection) -> None:
    # A transaction that reads and later writes cannot be upgraded while another writes: take the write lock at once.
    reads_only = connection.get_execution_options().get(_READS_ONLY, False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

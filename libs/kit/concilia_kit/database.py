"""A service's own database, SQLite or Postgres by URL, brought to the newest schema by its own migrations.

SQLite runs in write-ahead mode with foreign keys on; its transactions take the write lock at once, and are short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event

_MIGRATION_LOCK = 0x636F6E63  # one advisory lock for all replicas that start together


def engine(url: str) -> sa.Engine:
    """An engine; opens no connection. Raises `sqlalchemy.exc.ArgumentError` for a malformed URL."""
    made = sa.create_engine(url, pool_pre_ping=True)
    if made.dialect.name == "sqlite":
        event.listen(made, "connect", _on_sqlite_connect)
        event.listen(made, "begin", _on_sqlite_begin)
    return made


def migrate(database: sa.Engine, migrations: Path) -> None:
    """Bring the schema to the newest revision; safe when two replicas start together.

    `migrations` is the folder with Alembic's `env.py`, which takes the connection from
    `config.attributes["connection"]`.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    with database.begin() as connection:  # SQLite: BEGIN IMMEDIATE is the lock
        if database.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


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
    connection.exec_driver_sql("BEGIN IMMEDIATE")

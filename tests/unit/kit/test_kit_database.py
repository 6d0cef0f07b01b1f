"""SQLite as services use it: readers and a writer do not wait for each other; schemas come to their newest revision."""

from __future__ import annotations

from pathlib import Path

import concilia_aggregator.main
import concilia_chain.main
import concilia_model.main
import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from concilia_kit import database

MIGRATIONS = [concilia_aggregator.main.MIGRATIONS, concilia_chain.main.MIGRATIONS, concilia_model.main.MIGRATIONS]


def test_a_reader_neither_waits_for_a_writer_nor_holds_it_up(tmp_path: Path) -> None:
    engine = database.engine(f"sqlite:///{tmp_path / 'test.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (number INTEGER)"))
        connection.execute(sa.text("INSERT INTO numbers VALUES (1)"))
    count = sa.text("SELECT count(*) FROM numbers")
    with engine.begin() as writer:
        writer.execute(sa.text("INSERT INTO numbers VALUES (2)"))
        with database.reading(engine).begin() as reader:  # else it would wait for ten seconds and fail
            assert reader.execute(count).scalar() == 1
            writer.commit()
            assert reader.execute(count).scalar() == 1, "one moment's state"
    with database.reading(engine).begin() as reader:
        assert reader.execute(count).scalar() == 2
    engine.dispose()


@pytest.mark.parametrize("migrations", MIGRATIONS, ids=lambda path: path.parent.name)
def test_the_newest_revision_is_alembics(migrations: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    assert ScriptDirectory.from_config(config).get_current_head() == database.newest(migrations)


def test_a_schema_is_migrated_apart_once(tmp_path: Path) -> None:
    url, migrations = f"sqlite:///{tmp_path / 'test.db'}", MIGRATIONS[0]
    database.migrate_apart(url, migrations)
    engine = database.engine(url)
    assert {"jobs", "outbox", "verifications"} <= set(sa.inspect(engine).get_table_names())
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE outbox"))
    database.migrate_apart(url, migrations)
    database.migrate(engine, migrations)
    assert "outbox" not in sa.inspect(engine).get_table_names(), "what is at its newest is left alone"
    engine.dispose()


def test_a_database_that_cannot_be_had_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises((SystemExit, sa.exc.OperationalError)):
        database.migrate_apart(f"sqlite:///{tmp_path / 'nowhere' / 'test.db'}", MIGRATIONS[0])

"""What the aggregator remembers: its tables are those that the migrations make."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from concilia_aggregator import main, tables
from concilia_kit import database


def test_migrations_make_the_tables_that_the_code_expects(tmp_path: Path) -> None:
    engine = database.engine(f"sqlite:///{tmp_path / 'aggregator.db'}")
    database.migrate(engine, main.MIGRATIONS)
    found = sa.inspect(engine)
    made = {name for name in found.get_table_names() if name != "alembic_version"}
    assert made == set(tables.metadata.tables)
    for name, table in tables.metadata.tables.items():
        columns = {each["name"]: each["type"].compile(engine.dialect) for each in found.get_columns(name)}
        assert columns == {each.name: each.type.compile(engine.dialect) for each in table.columns}, name
        assert found.get_pk_constraint(name)["constrained_columns"] == [each.name for each in table.primary_key], name
    engine.dispose()

"""What is asked again and again without growing: is anything of a round committed, is any event still to be told."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    committed = sa.text('"index" IS NOT NULL')
    op.create_index(
        "leaves_committed",
        "leaves",
        ["deployment", "job", "round"],
        sqlite_where=committed,
        postgresql_where=committed,
    )
    # A round's events by name: without the name, SQLite counts through an index that has every hospital's role in it.
    op.drop_index("events_of_job", "events")
    op.create_index("events_of_round", "events", ["deployment", "job", "round", "name", "account"])
    op.drop_index("events_to_publish", "events")  # which the order asked for had nobody use
    op.create_index(
        "events_unpublished",
        "events",
        ["deployment", "block", "log_index"],
        sqlite_where=sa.text("published IS 0"),  # as the query says it: SQLite compares the words
        postgresql_where=sa.text("published IS false"),
    )

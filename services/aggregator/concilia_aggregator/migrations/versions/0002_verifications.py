"""Verifications."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_UNFINISHED_ONLY = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    op.create_table(
        "verifications",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("fraction", sa.Float, nullable=False),
        sa.Column("step", sa.String(200), nullable=False),
        sa.Column("verdict", sa.JSON),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("asked_by", sa.String(42), nullable=False),
        sa.Column("asked_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index(
        "one_unfinished_verification_a_job",
        "verifications",
        ["job"],
        unique=True,
        sqlite_where=_UNFINISHED_ONLY,
        postgresql_where=_UNFINISHED_ONLY,
    )

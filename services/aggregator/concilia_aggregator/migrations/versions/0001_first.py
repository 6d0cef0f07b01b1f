"""Jobs, rounds, nodes, reports, progress, outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False, index=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("created_by", sa.String(42), nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("base", sa.String(64)),
        sa.Column("model", sa.String(64)),
        sa.Column("deadline", sa.BigInteger),
        sa.Column("opened_at", sa.Float),
        sa.Column("closed_at", sa.Float),
        sa.Column("summary", sa.JSON, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("address", sa.String(42), primary_key=True),
        sa.Column("registration", sa.JSON, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
    for table, column in (("reports", "report"), ("progress", "progress")):
        op.create_table(
            table,
            sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), primary_key=True),
            sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("hospital", sa.String(42), primary_key=True),
            sa.Column(column, sa.JSON, nullable=False),
        )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), nullable=False, index=True),
        sa.Column("hospital", sa.String(42), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("task", sa.JSON, nullable=False),
    )

"""Rooms in which the hospitals of a secure round agree on masks, and what they leave there for one another."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "masking_rooms",
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stage", sa.String(16), nullable=False, index=True),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("roster", sa.JSON),
        sa.Column("sharers", sa.JSON),
        sa.Column("survivors", sa.JSON),
        sa.Column("unmasking", sa.JSON),
        sa.Column("detail", sa.String(500), nullable=False),
    )
    op.create_table(
        "masking_messages",
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("sender", sa.String(42), primary_key=True),
        sa.Column("recipient", sa.String(42), primary_key=True),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_index("ix_masking_messages_recipient", "masking_messages", ["job", "round", "recipient"])

"""Artifacts, their owners, and model versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.String(42), nullable=False),
        sa.Column("tensors", sa.Integer, nullable=False),
        sa.Column("origin", sa.Text, nullable=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "artifact_owners",
        sa.Column("digest", sa.String(64), sa.ForeignKey("artifacts.digest"), primary_key=True),
        sa.Column("owner", sa.String(42), primary_key=True),
        sa.Column("shared", sa.Boolean, nullable=False),
    )
    op.create_table(
        "models",
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), sa.ForeignKey("artifacts.digest"), nullable=False),
        sa.Column("published_at", sa.Float, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
    )
    op.create_index("ix_models_digest", "models", ["digest"])


def downgrade() -> None:
    op.drop_table("models")
    op.drop_table("artifact_owners")
    op.drop_table("artifacts")

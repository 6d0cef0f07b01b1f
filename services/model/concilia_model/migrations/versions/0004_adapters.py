"""Which artifacts are adapters, and over which trunk. Files from before there were any name none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("trunk", sa.String(64), nullable=True))
    op.add_column("artifacts", sa.Column("adapter", sa.String(16), nullable=True))
    op.create_index("ix_artifacts_trunk", "artifacts", ["trunk"])


def downgrade() -> None:
    op.drop_index("ix_artifacts_trunk", "artifacts")
    for name in ("adapter", "trunk"):
        op.drop_column("artifacts", name)

"""Which key the noise on a round's model is of, by the updates that it was folded from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "noise_keys",
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("contributions", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False),
    )

"""The key that a creator gave a job, so that a request that is repeated makes no second one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("idempotency_key", sa.String(128), nullable=True))
    op.create_index("ix_jobs_created_by_key", "jobs", ["created_by", "idempotency_key"], unique=True)

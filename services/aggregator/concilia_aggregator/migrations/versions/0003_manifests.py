"""Manifests of jobs; those that are there already have none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("manifest", sa.JSON, nullable=True))

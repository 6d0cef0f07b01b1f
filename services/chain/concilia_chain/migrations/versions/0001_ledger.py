"""Deployments with their cursor, events, metrics by digest, the relay's transactions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "deployments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("chain_id", sa.BigInteger, nullable=False),
        sa.Column("address", sa.String(42), nullable=False),
        sa.Column("block", sa.BigInteger, nullable=False),
        sa.Column("block_hash", sa.String(66), nullable=False),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("cursor_hash", sa.String(66), nullable=False),
        sa.UniqueConstraint("chain_id", "address", "block_hash"),
    )
    op.create_table(
        "events",
        sa.Column("deployment", sa.Integer, sa.ForeignKey("deployments.id"), primary_key=True),
        sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("log_index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("block_hash", sa.String(66), nullable=False),
        sa.Column("transaction", sa.String(66), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("job", sa.String(64)),
        sa.Column("round", sa.BigInteger),
        sa.Column("account", sa.String(42)),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("signature", sa.Text),
        sa.Column("published", sa.Boolean, nullable=False),
    )
    op.create_index("events_of_job", "events", ["deployment", "job", "round"])
    op.create_index("events_of_account", "events", ["deployment", "name", "account"])
    op.create_index("events_to_publish", "events", ["deployment", "published"])
    op.create_table(
        "metrics",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_table(
        "transactions",
        sa.Column("deployment", sa.Integer, sa.ForeignKey("deployments.id"), primary_key=True),
        sa.Column("transaction", sa.String(66), primary_key=True),
        sa.Column("block", sa.BigInteger, nullable=False),
        sa.Column("gas", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("sent_at", sa.Double, nullable=False),
        sa.Column("confirmed_at", sa.Double, nullable=False),
        sa.Column("function", sa.String(64), nullable=False),
        sa.Column("job", sa.String(64)),
        sa.Column("round", sa.BigInteger),
        sa.Column("hospital", sa.String(42)),
    )
    op.create_index("transactions_of_job", "transactions", ["deployment", "job", "confirmed_at"])

"""When artifacts were brought, checked and removed, and what the ledger says of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIMES = ("brought_at", "checked_at")


def upgrade() -> None:
    # What is there already was last brought, and hashed, when it was created. The defaults are for rows that a replica
    # of the version before adds while this one starts.
    for name in _TIMES:
        op.add_column("artifacts", sa.Column(name, sa.Float, nullable=False, server_default="0"))
        op.execute(sa.text(f"UPDATE artifacts SET {name} = created_at"))  # noqa: S608 - of the two names above
    op.add_column("artifacts", sa.Column("removed_at", sa.Float, nullable=True))
    op.add_column("artifacts", sa.Column("removed_because", sa.String(16), nullable=True))
    op.create_table(
        "ledger_uses",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True),
        sa.Column("use", sa.String(8), primary_key=True),
    )
    op.create_table(
        "ledger_rounds",
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("over", sa.Boolean, nullable=False),
        sa.Column("named", sa.Boolean, nullable=False),
        sa.Column("last_at", sa.Float, nullable=False),
    )
    op.create_table(
        "ledger_position",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("block", sa.BigInteger, nullable=False),
        sa.Column("log_index", sa.BigInteger, nullable=False),
        sa.Column("transaction", sa.String(66), nullable=False),
        sa.Column("read_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    for table in ("ledger_position", "ledger_rounds", "ledger_uses"):
        op.drop_table(table)
    for name in (*_TIMES, "removed_at", "removed_because"):
        op.drop_column("artifacts", name)

"""Events keep their block's time and who signed them; indexes for reading them newest first by name, account or job."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("events", sa.Column("timestamp", sa.BigInteger))
    op.add_column("events", sa.Column("signer", sa.String(42)))
    for column in ("name", "account", "job"):
        op.create_index(f"events_newest_of_{column}", "events", ["deployment", column, "block", "log_index"])

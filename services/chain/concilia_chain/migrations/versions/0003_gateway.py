"""The gateway's outbox in place of the list of its transactions; leaves of Merkle rounds; the sender's lease."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "sendings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("deployment", sa.Integer, sa.ForeignKey("deployments.id")),  # none before a ledger is deployed
        sa.Column("nonce", sa.BigInteger),  # none for what was sent before nonces were kept
        sa.Column("function", sa.String(64), nullable=False),
        sa.Column("job", sa.String(64)),
        sa.Column("round", sa.BigInteger),
        sa.Column("to", sa.String(42)),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("gas_limit", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("sent_at", sa.Double, nullable=False),
        sa.Column("transaction", sa.String(66)),
        sa.Column("block", sa.BigInteger),
        sa.Column("block_hash", sa.String(66)),
        sa.Column("gas", sa.BigInteger),
        sa.Column("mined_at", sa.Double),
        sqlite_autoincrement=True,  # the number of a row that was deleted means no other one
    )
    op.create_index("sendings_by_state", "sendings", ["deployment", "state", "nonce"])
    op.create_table(
        "attempts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sending", sa.Integer, sa.ForeignKey("sendings.id"), nullable=False),
        sa.Column("transaction", sa.String(66), nullable=False),
        sa.Column("raw", sa.Text, nullable=False),
        sa.Column("most_fee", sa.BigInteger, nullable=False),
        sa.Column("tip", sa.BigInteger),
        sa.Column("sent_at", sa.Double, nullable=False),
    )
    op.create_index("attempts_of_sending", "attempts", ["sending"])
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("deployment", sa.Integer, sa.ForeignKey("deployments.id"), nullable=False),
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("function", sa.String(64), nullable=False),
        sa.Column("job", sa.String(64)),
        sa.Column("round", sa.BigInteger),
        sa.Column("hospital", sa.String(42)),
        sa.Column("to", sa.String(42)),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("effect", sa.JSON),
        sa.Column("document", sa.JSON),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("reverts", sa.Integer, nullable=False),
        sa.Column("sending", sa.Integer, sa.ForeignKey("sendings.id")),
        sa.UniqueConstraint("deployment", "key"),
        sqlite_autoincrement=True,
    )
    op.create_index("orders_by_sending", "orders", ["deployment", "sending"])
    op.create_index("orders_of_sending", "orders", ["sending"])
    op.create_index("orders_of_job", "orders", ["deployment", "job"])
    op.create_table(
        "leaves",
        sa.Column("deployment", sa.Integer, sa.ForeignKey("deployments.id"), primary_key=True),
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hospital", sa.String(42), primary_key=True),
        sa.Column("leaf", sa.String(64), nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("index", sa.BigInteger),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("holder", sa.String(100), nullable=False),
        sa.Column("ends_at", sa.Double, nullable=False),
    )
    # What was relayed so far is on the chain to stay; its calldata was not kept here.
    op.execute(
        'INSERT INTO sendings (deployment, function, job, round, data, gas_limit, state, sent_at, "transaction", block,'
        " gas, mined_at) SELECT deployment, function, job, round, '', gas, 'final', sent_at, \"transaction\", block,"
        " gas, confirmed_at FROM transactions"
    )
    op.execute(
        "INSERT INTO orders (deployment, key, function, job, round, hospital, data, received_at, reverts, sending)"
        " SELECT t.deployment, 'transaction:' || t.\"transaction\", t.function, t.job, t.round, t.hospital, '',"
        " t.received_at, 0, s.id FROM transactions t JOIN sendings s ON s.deployment = t.deployment"
        ' AND s."transaction" = t."transaction"'
    )
    op.drop_table("transactions")

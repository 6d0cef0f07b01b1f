"""The database's tables, as `migrations/` makes them."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from concilia_kit.wire.training import UpdateMetrics
from sqlalchemy.dialects import postgresql, sqlite

metadata = sa.MetaData()
deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("chain_id", sa.BigInteger),
    sa.Column("address", sa.String(42)),
    sa.Column("block", sa.BigInteger),
    sa.Column("block_hash", sa.String(66)),
    sa.Column("cursor", sa.BigInteger),
    sa.Column("cursor_hash", sa.String(66)),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("deployment", sa.Integer, primary_key=True),
    sa.Column("block", sa.BigInteger, primary_key=True),
    sa.Column("log_index", sa.Integer, primary_key=True),
    sa.Column("block_hash", sa.String(66)),
    sa.Column("transaction", sa.String(66)),
    sa.Column("name", sa.String(64)),
    sa.Column("job", sa.String(64)),
    sa.Column("round", sa.BigInteger),
    sa.Column("account", sa.String(42)),
    sa.Column("arguments", sa.JSON),
    sa.Column("signature", sa.Text),
    sa.Column("published", sa.Boolean),
    sa.Column("timestamp", sa.BigInteger),
    sa.Column("signer", sa.String(42)),
)
metrics = sa.Table(
    "metrics", metadata, sa.Column("digest", sa.String(64), primary_key=True), sa.Column("document", sa.JSON)
)
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("deployment", sa.Integer),
    sa.Column("key", sa.String(80)),
    sa.Column("function", sa.String(64)),
    sa.Column("job", sa.String(64)),
    sa.Column("round", sa.BigInteger),
    sa.Column("hospital", sa.String(42)),
    sa.Column("to", sa.String(42)),
    sa.Column("data", sa.Text),
    sa.Column("effect", sa.JSON(none_as_null=True)),
    sa.Column("document", sa.JSON(none_as_null=True)),
    sa.Column("received_at", sa.Double),
    sa.Column("reverts", sa.Integer),
    sa.Column("sending", sa.Integer),
)
sendings = sa.Table(
    "sendings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("deployment", sa.Integer),
    sa.Column("nonce", sa.BigInteger),
    sa.Column("function", sa.String(64)),
    sa.Column("job", sa.String(64)),
    sa.Column("round", sa.BigInteger),
    sa.Column("to", sa.String(42)),
    sa.Column("data", sa.Text),
    sa.Column("gas_limit", sa.BigInteger),
    sa.Column("state", sa.String(16)),
    sa.Column("sent_at", sa.Double),
    sa.Column("transaction", sa.String(66)),
    sa.Column("block", sa.BigInteger),
    sa.Column("block_hash", sa.String(66)),
    sa.Column("gas", sa.BigInteger),
    sa.Column("mined_at", sa.Double),
)
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sending", sa.Integer),
    sa.Column("transaction", sa.String(66)),
    sa.Column("raw", sa.Text),
    sa.Column("most_fee", sa.BigInteger),
    sa.Column("tip", sa.BigInteger),
    sa.Column("sent_at", sa.Double),
)
leaves = sa.Table(
    "leaves",
    metadata,
    sa.Column("deployment", sa.Integer, primary_key=True),
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True),
    sa.Column("hospital", sa.String(42), primary_key=True),
    sa.Column("leaf", sa.String(64)),
    sa.Column("document", sa.JSON),
    sa.Column("received_at", sa.Double),
    sa.Column("index", sa.BigInteger),
)
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("holder", sa.String(100)),
    sa.Column("ends_at", sa.Double),
)


def put_metrics(connection: sa.Connection, documents: Mapping[str, UpdateMetrics]) -> None:
    """Keep metrics under their digests; keeping them again changes nothing, for two hospitals may measure the same."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    rows = [{"digest": digest, "document": each.model_dump(mode="json")} for digest, each in documents.items()]
    if rows:
        connection.execute(insert(metrics).on_conflict_do_nothing(), rows)

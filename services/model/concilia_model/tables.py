"""The tables of the model service's database."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(42), nullable=False),
    sa.Column("tensors", sa.Integer, nullable=False),
    sa.Column("origin", sa.Text, nullable=True),
    sa.Column("trunk", sa.String(64), nullable=True, index=True),  # of an adapter, as its file names it
    sa.Column("adapter", sa.String(16), nullable=True),
    sa.Column("secret", sa.Boolean, nullable=False, server_default=sa.false()),  # as its file says
    sa.Column("created_at", sa.Float, nullable=False),  # Unix seconds, as all times here
    sa.Column("brought_at", sa.Float, nullable=False),  # when somebody last brought these bytes, or began to
    sa.Column("checked_at", sa.Float, nullable=False),  # when the bytes were last hashed
    sa.Column(
        "removed_at", sa.Float, nullable=True
    ),  # when the file was deleted or put aside; None while it lies there
    sa.Column("removed_because", sa.String(16), nullable=True),
)

# Everybody who brought the same bytes, the first owner included.
artifact_owners = sa.Table(
    "artifact_owners",
    metadata,
    sa.Column("digest", sa.String(64), sa.ForeignKey("artifacts.digest"), primary_key=True),
    sa.Column("owner", sa.String(42), primary_key=True),
    sa.Column("shared", sa.Boolean, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), sa.ForeignKey("artifacts.digest"), nullable=False, index=True),
    sa.Column("published_at", sa.Float, nullable=False),  # Unix seconds
    sa.Column("version", sa.Text, nullable=False),  # the wire model as JSON
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(42), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False, index=True),  # Unix seconds
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Index("ix_uploads_owner_digest", "owner", "digest"),
)

# What the ledger says of artifacts, as far as it was read. Nothing here is ever taken back: what a reorganisation drops
# may keep a file, and deletes none.
ledger_uses = sa.Table(
    "ledger_uses",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True),
    sa.Column("use", sa.String(8), primary_key=True),  # of `retention.Use`
)

ledger_rounds = sa.Table(
    "ledger_rounds",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True),
    sa.Column("opened_at", sa.Float, nullable=False),
    sa.Column("deadline", sa.Float, nullable=False),
    sa.Column("over", sa.Boolean, nullable=False),  # closed or aborted
    sa.Column("named", sa.Boolean, nullable=False),  # False: it has committed updates that nobody tells
    sa.Column("last_at", sa.Float, nullable=False),  # of its newest event
)

# The newest event that was read, and when; one row.
ledger_position = sa.Table(
    "ledger_position",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("block", sa.BigInteger, nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False),
    sa.Column("transaction", sa.String(66), nullable=False),
    sa.Column("read_at", sa.Float, nullable=False),
)

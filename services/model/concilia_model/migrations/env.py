"""Alembic's environment; the caller brings the connection and its transaction."""

from __future__ import annotations

from alembic import context
from concilia_model.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

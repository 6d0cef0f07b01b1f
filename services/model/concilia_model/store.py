"""What the model service remembers in SQL: artifacts, who brought them, and registered model versions.

The files themselves lie in an `ArtifactStore`; a row without its file counts as absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from concilia_kit.wire.models import Artifact, ModelVersion
from sqlalchemy.exc import IntegrityError

MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData()

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(42), nullable=False),
    sa.Column("tensors", sa.Integer, nullable=False),
    sa.Column("origin", sa.Text, nullable=True),
    sa.Column("created_at", sa.Float, nullable=False),  # Unix seconds
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


class Store:
    """Reads and writes of one database. Every method is one transaction."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database

    def artifact(self, digest: str) -> Artifact | None:
        """An artifact's record."""
        with self._database.begin() as connection:
            return _artifact(connection, digest)

    def brought(self, digest: str, owner: str) -> bool:
        """Whether `owner` brought these bytes."""
        return self._has_owner(sa.and_(artifact_owners.c.digest == digest, artifact_owners.c.owner == owner))

    def shared(self, digest: str) -> bool:
        """Whether somebody brought these bytes whose uploads every hospital may read."""
        return self._has_owner(sa.and_(artifact_owners.c.digest == digest, artifact_owners.c.shared))

    def record(self, artifact: Artifact, *, shared: bool, now: float) -> tuple[Artifact, bool]:
        """Record an artifact and its owner. The first record stays; a later owner is added to it.

        Returns the record that stands, and whether it is new.
        """
        try:
            return self._record(artifact, shared, now)
        except IntegrityError:  # another process recorded the same in this moment
            return self._record(artifact, shared, now)

    def register(self, version: ModelVersion) -> ModelVersion:
        """Record a job's model version; where the job has one already, that one stays and is returned."""
        try:
            with self._database.begin() as connection:
                connection.execute(
                    models.insert().values(
                        job=version.job,
                        digest=version.digest,
                        published_at=version.published_at.timestamp(),
                        version=version.model_dump_json(),
                    )
                )
        except IntegrityError:
            standing = self._version(sa.select(models.c.version).where(models.c.job == version.job))
            if standing is None:
                raise
            return standing
        return version

    def versions(self) -> tuple[ModelVersion, ...]:
        """All model versions, the newest first."""
        with self._database.begin() as connection:
            rows = connection.scalars(sa.select(models.c.version).order_by(models.c.published_at.desc(), models.c.job))
            return tuple(ModelVersion.model_validate_json(text) for text in rows)

    def version(self, digest: str) -> ModelVersion | None:
        """A model version by its digest; the newest where several jobs arrived at the same bytes."""
        return self._version(sa.select(models.c.version).where(models.c.digest == digest))

    def latest(self) -> ModelVersion | None:
        """The newest model version."""
        return self._version(sa.select(models.c.version))

    def _version(self, query: sa.Select[str]) -> ModelVersion | None:
        with self._database.begin() as connection:
            found = connection.scalar(query.order_by(models.c.published_at.desc(), models.c.job).limit(1))
            return None if found is None else ModelVersion.model_validate_json(found)

    def _has_owner(self, condition: sa.ColumnElement[bool]) -> bool:
        with self._database.begin() as connection:
            return bool(connection.scalar(sa.select(sa.exists(sa.select(artifact_owners.c.digest).where(condition)))))

    def _record(self, artifact: Artifact, shared: bool, now: float) -> tuple[Artifact, bool]:
        with self._database.begin() as connection:
            standing = _artifact(connection, artifact.digest)
            if standing is None:
                connection.execute(artifacts.insert().values(**artifact.model_dump(), created_at=now))
            key: dict[str, Any] = {"digest": artifact.digest, "owner": artifact.owner}
            owned = connection.execute(sa.select(artifact_owners.c.shared).filter_by(**key)).one_or_none()
            if owned is None:
                connection.execute(artifact_owners.insert().values(**key, shared=shared))
            elif shared and not owned.shared:
                connection.execute(artifact_owners.update().filter_by(**key).values(shared=True))
            return standing or artifact, standing is None


def _artifact(connection: sa.Connection, digest: str) -> Artifact | None:
    columns = (artifacts.c[name] for name in Artifact.model_fields)
    row = connection.execute(sa.select(*columns).where(artifacts.c.digest == digest)).one_or_none()
    return None if row is None else Artifact(**row._mapping)

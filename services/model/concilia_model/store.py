"""What the model service remembers in SQL: artifacts, who brought them, resumable uploads, and registered
model versions.

The files themselves lie in an `ArtifactStore`; a row without its file counts as absent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, slots=True)
class Upload:
    """A resumable upload: who brings which bytes. What has come of them is in the `PartialStore`.

    A finished one is remembered until `expires_at` (Unix seconds), for a sender that lost the answer.
    """

    id: str
    owner: str
    digest: str
    length: int
    expires_at: float
    finished: bool = False


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

    def begin_upload(self, upload: Upload) -> None:
        """Record a new upload."""
        with self._database.begin() as connection:
            connection.execute(uploads.insert().values(**asdict(upload)))

    def upload(self, upload: str, now: float) -> Upload | None:
        """An upload that has not expired."""
        return next(iter(self._uploads(uploads.c.id == upload, uploads.c.expires_at > now)), None)

    def open_uploads(self, owner: str, now: float) -> list[Upload]:
        """The uploads of an owner that are neither finished nor expired."""
        return self._uploads(uploads.c.owner == owner, sa.not_(uploads.c.finished), uploads.c.expires_at > now)

    def expired_uploads(self, now: float) -> list[Upload]:
        """The uploads whose time is over."""
        return self._uploads(uploads.c.expires_at <= now)

    def keep_upload(self, upload: str, expires_at: float, *, finished: bool = False) -> None:
        """Let an upload live until `expires_at`, and remember that it is finished where it is."""
        values: dict[str, Any] = {"expires_at": expires_at, **({"finished": True} if finished else {})}
        with self._database.begin() as connection:
            connection.execute(uploads.update().where(uploads.c.id == upload).values(**values))

    def forget_upload(self, upload: str) -> None:
        """Remove an upload; again is fine."""
        with self._database.begin() as connection:
            connection.execute(uploads.delete().where(uploads.c.id == upload))

    def _uploads(self, *conditions: sa.ColumnElement[bool]) -> list[Upload]:
        with self._database.begin() as connection:
            return [Upload(**row._mapping) for row in connection.execute(sa.select(uploads).where(*conditions))]

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

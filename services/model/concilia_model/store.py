"""What the model service remembers in SQL: artifacts, who brought them, resumable uploads, and registered
model versions.

The files themselves lie in an `ArtifactStore`; a row without its file counts as absent. A row stays when its file is
deleted, and says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from concilia_kit.wire.models import Artifact, ModelVersion
from sqlalchemy.exc import IntegrityError

from concilia_model.tables import artifact_owners, artifacts, models, uploads

MIGRATIONS = Path(__file__).parent / "migrations"


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


class Removal(StrEnum):
    """Why an artifact's file is not there any more."""

    POLICY = "policy"
    """Nobody was going to need it."""
    CORRUPT = "corrupt"
    """Its bytes had changed on the disk."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Since when (Unix seconds) and why an artifact's file is gone."""

    at: float
    because: Removal


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
        """Whether somebody brought these bytes whose uploads every hospital may read, or an adapter over them. What is
        secret is not."""
        over = sa.select(artifacts.c.digest).where(artifacts.c.trunk == digest)
        named = sa.or_(artifact_owners.c.digest == digest, artifact_owners.c.digest.in_(over))
        secret = sa.exists(sa.select(artifacts.c.digest).where(artifacts.c.digest == digest, artifacts.c.secret))
        return self._has_owner(sa.and_(named, artifact_owners.c.shared, sa.not_(secret)))

    def removed(self, digest: str) -> Removed | None:
        """Whether an artifact's file was removed."""
        wanted = sa.select(artifacts.c.removed_at, artifacts.c.removed_because)
        with self._database.begin() as connection:
            row = connection.execute(wanted.where(artifacts.c.digest == digest)).one_or_none()
        return None if row is None or row.removed_at is None else Removed(row.removed_at, Removal(row.removed_because))

    def bring(self, digest: str, now: float) -> None:
        """Somebody brings these bytes: to be said before they are stored, or found to be there. From here on no removal
        goes through that began earlier. What is not recorded yet is nobody's to remove."""
        self._set(digest, brought_at=now)

    def brought_at(self, digest: str) -> float | None:
        """When an artifact that is not removed was last brought."""
        wanted = sa.select(artifacts.c.brought_at)
        with self._database.begin() as connection:
            return connection.scalar(wanted.where(artifacts.c.digest == digest, artifacts.c.removed_at.is_(None)))

    def remove(self, digest: str, removed: Removed, brought_at: float) -> bool:
        """Record that an artifact's file goes, unless somebody brought it after `brought_at`; whether it does."""
        values = {"removed_at": removed.at, "removed_because": removed.because.value}
        stays = artifacts.update().where(
            artifacts.c.digest == digest, artifacts.c.brought_at <= brought_at, artifacts.c.removed_at.is_(None)
        )
        with self._database.begin() as connection:
            return connection.execute(stays.values(**values)).rowcount == 1

    def keep(self, digest: str) -> None:
        """An artifact's file is there after all."""
        self._set(digest, removed_at=None, removed_because=None)

    def still_removed(self, digest: str, brought_at: float) -> bool:
        """Whether an artifact is removed and nobody began to bring it after `brought_at`."""
        conditions = (
            artifacts.c.digest == digest,
            artifacts.c.removed_at.is_not(None),
            artifacts.c.brought_at <= brought_at,
        )
        with self._database.begin() as connection:
            return bool(connection.scalar(sa.select(sa.exists(sa.select(artifacts.c.digest).where(*conditions)))))

    def removed_by_policy(self, margin: float) -> list[tuple[str, float]]:
        """Every artifact removed because nobody was going to need it, and when it was brought: more than `margin`
        seconds before that. One brought later is on its way in."""
        wanted = sa.select(artifacts.c.digest, artifacts.c.brought_at).where(
            artifacts.c.removed_because == Removal.POLICY.value,
            artifacts.c.brought_at < artifacts.c.removed_at - margin,
        )
        with self._database.begin() as connection:
            return [(row.digest, row.brought_at) for row in connection.execute(wanted)]

    def removed_amount(self) -> tuple[int, int]:
        """How many artifacts were removed because nobody was going to need them, and their bytes together."""
        wanted = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(artifacts.c.size), 0))
        with self._database.begin() as connection:
            files, size = connection.execute(wanted.where(artifacts.c.removed_because == Removal.POLICY.value)).one()
            return int(files), int(size)

    def checked(self, digest: str, now: float) -> None:
        """An artifact's bytes were hashed and are what they are named."""
        self._set(digest, checked_at=now)

    def checked_at(self, digest: str) -> float | None:
        """When the bytes of an artifact that is not removed were last hashed, and were what they are named."""
        wanted = sa.select(artifacts.c.checked_at)
        with self._database.begin() as connection:
            return connection.scalar(wanted.where(artifacts.c.digest == digest, artifacts.c.removed_at.is_(None)))

    def checked_longest_ago(self, before: float) -> str | None:
        """The artifact whose bytes were hashed longest ago, of those that were not since `before`."""
        wanted = sa.select(artifacts.c.digest).where(artifacts.c.removed_at.is_(None), artifacts.c.checked_at < before)
        with self._database.begin() as connection:
            return connection.scalar(wanted.order_by(artifacts.c.checked_at, artifacts.c.digest).limit(1))

    def record(self, artifact: Artifact, *, shared: bool, now: float) -> tuple[Artifact, bool]:
        """Record an artifact, which is there, and its owner. The first record stays; a later owner is added to it.

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

    def _set(self, digest: str, **values: Any) -> None:
        with self._database.begin() as connection:
            connection.execute(artifacts.update().where(artifacts.c.digest == digest).values(**values))

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
                times = dict.fromkeys(("created_at", "brought_at", "checked_at"), now)
                connection.execute(artifacts.insert().values(**artifact.model_dump(), **times))
            else:
                there = {"brought_at": now, "checked_at": now, "removed_at": None, "removed_because": None}
                connection.execute(artifacts.update().where(artifacts.c.digest == artifact.digest).values(**there))
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

"""Artifacts as the aggregator reads and writes them: always a local path, so that they can be mapped.

Where the artifact store's volume is mounted read-only, reading moves no byte; elsewhere a file is downloaded once.
Writing always goes through the model service, which owns the store. Files may be sealed, in the store and where they
are downloaded to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import httpx
from concilia_kit import transfer
from concilia_kit.http import call
from concilia_kit.problems import NotFound, Problem
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.wire.models import Artifact, ArtifactCheck, ModelRegistration

PUT_ASIDE = "artifact_quarantined"
_ABSENT = frozenset({404, 410})


class ArtifactNotFound(NotFound):
    """The store has no file of that digest."""

    code = "artifact_not_found"


class Artifacts(Protocol):
    """Reading, writing and registering artifacts."""

    @property
    def keys(self) -> Keyring:
        """What files are read with, and sealed with that are made of them."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether the store has it, and of an adapter its trunk too."""
        ...

    def fetch(self, digest: str) -> Path:
        """A local path to its bytes, perhaps sealed, which the caller must hash. Raises `ArtifactNotFound`,
        `Unavailable`."""
        ...

    def release(self, digest: str) -> None:
        """The caller is done with a path it fetched."""
        ...

    def put(self, digest: str, path: Path) -> None:
        """Store a file, which may be sealed; again is fine. Raises `Problem`."""
        ...

    def register(self, registration: ModelRegistration) -> None:
        """Register a published model version. Raises `Problem`."""
        ...

    def is_put_aside(self, digest: str) -> bool:
        """Whether the store had its bytes and found its file changed: who has them may bring them again. Raises
        `Problem`."""
        ...

    def is_intact(self, digest: str) -> bool:
        """Have the store look at its file; where that has changed it is put aside. Raises `Problem`."""
        ...


class RemoteArtifacts:
    """Artifacts over the model service's REST interface, downloads kept in a folder until released."""

    def __init__(self, model: httpx.Client, directory: Path, keys: Keyring = NO_KEYS) -> None:
        self._model = model
        self._directory = directory
        self.keys = keys

    def exists(self, digest: str) -> bool:
        """See `Artifacts`."""
        try:
            found = call(self._model, "GET", f"/v1/artifacts/{digest}/info")
        except Problem as problem:
            if problem.problem_status in _ABSENT:
                return False
            raise
        trunk = Artifact.model_validate_json(found.content).trunk
        return trunk is None or self.exists(trunk)

    def fetch(self, digest: str) -> Path:
        """See `Artifacts`."""
        path = self._directory / digest
        if path.exists():
            return path
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            transfer.download(self._model, digest, path, verify=False, keys=self.keys)
        except Problem as problem:
            if problem.problem_status in _ABSENT:
                raise ArtifactNotFound(f"the store has no artifact {digest[:12]}…: {problem.detail}") from problem
            raise
        return path

    def release(self, digest: str) -> None:
        """See `Artifacts`."""
        for name in (digest, f"{digest}.partial"):
            (self._directory / name).unlink(missing_ok=True)

    def put(self, digest: str, path: Path) -> None:
        """See `Artifacts`."""
        transfer.upload(self._model, digest, path, keys=self.keys)

    def register(self, registration: ModelRegistration) -> None:
        """See `Artifacts`."""
        call(self._model, "POST", "/v1/models", json=registration.model_dump(mode="json"))

    def is_put_aside(self, digest: str) -> bool:
        """See `Artifacts`."""
        try:
            call(self._model, "GET", f"/v1/artifacts/{digest}/info")
        except Problem as problem:
            if problem.problem_status not in _ABSENT:
                raise
            return problem.problem_code == PUT_ASIDE
        return False

    def is_intact(self, digest: str) -> bool:
        """See `Artifacts`."""
        self.release(digest)
        try:
            return ArtifactCheck.model_validate_json(
                call(self._model, "POST", f"/v1/artifacts/{digest}/check").content
            ).intact
        except Problem as problem:
            if problem.problem_status not in _ABSENT:
                raise
            return False


class Downloads:
    """`verification.verifier.ArtifactSource` over the model service, each file into the verification's own folder."""

    def __init__(self, model: httpx.Client, keys: Keyring = NO_KEYS) -> None:
        self._model = model
        self._keys = keys

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `ArtifactSource`."""
        return RemoteArtifacts(self._model, folder, self._keys).fetch(digest)


class MountedArtifacts(RemoteArtifacts):
    """Reads from the store's own volume, mounted read-only; writes like `RemoteArtifacts`."""

    def __init__(self, model: httpx.Client, mount: Path, keys: Keyring = NO_KEYS) -> None:
        super().__init__(model, mount, keys)

    def is_put_aside(self, digest: str) -> bool:
        """See `Artifacts`; nobody is asked about a file that is there."""
        return not (self._directory / digest[:2] / digest).exists() and super().is_put_aside(digest)

    def fetch(self, digest: str) -> Path:
        """See `Artifacts`."""
        path = self._directory / digest[:2] / digest
        if not path.exists():
            raise ArtifactNotFound(f"the store has no artifact {digest[:12]}…")
        return path

    def release(self, digest: str) -> None:
        """Nothing: the file is the store's."""

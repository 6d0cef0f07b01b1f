"""Where a verification gets its files: a folder laid out like the artifact store, or the model service."""

from __future__ import annotations

from pathlib import Path

from concilia.client import Client


class FolderSource:
    """The artifact store's own folder; files are read where they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, digest: str, folder: Path) -> Path:  # noqa: ARG002 - nothing needs to be copied there
        """See `verifier.ArtifactSource`."""
        path = self._folder / digest[:2] / digest
        path.stat()
        return path


class ServiceSource:
    """The model service; files are downloaded into the verification's own folder."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `verifier.ArtifactSource`."""
        target = folder / digest
        self._client.download(digest, target)
        return target

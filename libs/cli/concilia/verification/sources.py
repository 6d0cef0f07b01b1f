"""Where a verification gets its files from, if the artifact store's folder is not at hand: the model service."""

from __future__ import annotations

from pathlib import Path

from concilia.client import Client


class ServiceSource:
    """The model service; files are downloaded into the verification's own folder."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `concilia_aggregator.verification.verifier.ArtifactSource`."""
        target = folder / digest
        self._client.download(digest, target)
        return target

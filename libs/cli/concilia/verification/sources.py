"""Where a verification gets its files from, if they cannot be read where they lie: the model service, or a folder of
sealed files."""

from __future__ import annotations

from pathlib import Path

from concilia_kit.sealing import Keyring
from concilia_kit.storedfile import StoredFile

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


class SealedFolderSource:
    """The artifact store's own folder and its key; sealed files are decrypted into the verification's own folder."""

    def __init__(self, folder: Path, keys: Keyring) -> None:
        self._folder = folder
        self._keys = keys

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `concilia_aggregator.verification.verifier.ArtifactSource`. Raises `SealingKeyUnknown`."""
        path, target = self._folder / digest[:2] / digest, folder / digest
        with StoredFile.open(path, self._keys) as file:
            if file.seal is None:
                return path
            with target.open("wb") as made:
                made.writelines(file.pieces())
        return target

"""Where a verification gets its files from, if the artifact store's folder is there."""

from __future__ import annotations

from pathlib import Path

from concilia_kit.sealing import NO_KEYS, Keyring, SealingKeyUnknown
from concilia_kit.storedfile import StoredFile


class FolderSource:
    """The artifact store's own folder; files are read where they lie."""

    def __init__(self, folder: Path, keys: Keyring = NO_KEYS) -> None:
        self._folder = folder
        self._keys = keys

    def fetch(self, digest: str, folder: Path) -> Path:  # noqa: ARG002 - nothing needs to be copied there
        """See `verifier.ArtifactSource`. Raises `SealingKeyUnknown`."""
        path = self._folder / digest[:2] / digest
        try:
            StoredFile.open(path, self._keys).close()
        except SealingKeyUnknown as problem:
            raise SealingKeyUnknown(
                f"{problem.detail}: 'concilia verify' takes one with --sealing-key; the model service, which has it, "
                "gives the files as they are",
                extra=problem.extra,
            ) from problem
        return path

"""Files stored under the SHA-256 of their bytes: `<directory>/ab/abcdef…`.

A file is hashed while it is written, under a temporary name in the same directory, and appears under its digest all at
once. Whatever goes wrong before leaves nothing behind; what a killed process left is swept at the next start. The part
of a resumable upload that has come stays in `<directory>/uploads` until the upload ends. How files leave again is in
`upkeep`. Where there is a key, all of it is sealed (`concilia_kit.sealing`); sizes are those of what came.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import StoredFile, carried_on, size_of
from concilia_kit.tensorheader import RawHeader

from concilia_model.errors import ArtifactTooLarge, NoSpace
from concilia_model.incoming import Chunk, IncomingFile, full_disk_is_no_space, settle

INCOMING, UPLOADS, QUARANTINE = "incoming", "uploads", "quarantine"
"""Folders of the store that are not artifacts under their digest."""
_STALE_SECONDS = 6 * 3600.0
_FLUSHES = 4  # at one time; more would only queue at the disk


class Incoming(Protocol):
    """An artifact on its way in. A context manager: what is not committed inside it is gone afterwards."""

    size: int

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Append bytes. Raises `ArtifactTooLarge` and `NoSpace`."""

    def flush(self) -> None:
        """Have every byte on the disk. Raises `NoSpace`."""

    def digest(self) -> str:
        """SHA-256 of what was written so far."""

    def header(self) -> RawHeader:
        """The header of what was written. Raises `ArtifactMalformed`."""

    def commit(self) -> None:
        """Make it durable and visible under its digest. Raises `NoSpace`."""

    def close(self) -> None:
        """What leaving the context does; may wait for the disk."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ArtifactStore(Protocol):
    """Where artifacts lie."""

    def create(self, announced: int = 0) -> Incoming:
        """Begin an artifact of `announced` bytes, if known. Raises `ArtifactTooLarge` and `NoSpace`."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Where a file may be made that is then adopted; what is not is gone after the context."""

    def adopt(self, path: Path, digest: str) -> None:
        """Take in a file that was made in `scratch`, sealed where the store's are, is on the disk and hashes to
        `digest`. Raises `ArtifactTooLarge` and `NoSpace`."""

    def exists(self, digest: str) -> bool:
        """Whether an artifact is there."""

    def path(self, digest: str) -> Path:
        """A local file with the artifact's bytes, which may be sealed. Raises `FileNotFoundError`."""

    def open(self, digest: str) -> StoredFile:
        """The artifact's bytes. Raises `FileNotFoundError` and `SealingKeyUnknown`."""

    def check(self) -> None:
        """Raise `OSError` or `NoSpace` where nothing can be written."""


class PartialStore(Protocol):
    """Where the parts of resumable uploads lie that have come, by the upload's id."""

    def admit(self, size: int) -> None:
        """Whether a file of `size` bytes may begin. Raises `ArtifactTooLarge` and `NoSpace`."""

    def received(self, upload: str) -> int:
        """Bytes that have come."""

    def resume(self, upload: str) -> Incoming:
        """Go on where an upload is; what is not committed stays. Raises `UploadLocked` while another process does."""

    def forget(self, upload: str) -> None:
        """Remove what has come; again is fine."""

    def forgotten(self, seconds: float) -> list[str]:
        """Uploads to which nothing came for that long."""


class DirectoryStore:
    """Artifacts in a directory of one file system, which several processes may share; both protocols above."""

    def __init__(self, directory: Path, max_bytes: int, reserve_bytes: int, keys: Keyring = NO_KEYS) -> None:
        self._directory = directory
        self._keys = keys
        self._incoming = directory / INCOMING
        self._uploads = directory / UPLOADS
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._flusher = ThreadPoolExecutor(_FLUSHES, "flush")
        self._resumed: dict[str, IncomingFile] = {}

    def prepare(self) -> None:
        """Make the directory, and sweep what killed uploads left long ago. Raises `OSError`."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._uploads.mkdir(exist_ok=True)
        for left in self._incoming.iterdir():
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink(missing_ok=True)

    def create(self, announced: int = 0) -> Incoming:
        """See `ArtifactStore.create`."""
        self._admit(announced, announced)
        path = self._incoming / secrets.token_hex(16)
        return IncomingFile(path, place=self._place, admit=self._admit, flusher=self._flusher, keys=self._keys)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See `ArtifactStore.scratch`."""
        path = self._incoming / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def adopt(self, path: Path, digest: str) -> None:
        """See `ArtifactStore.adopt`."""
        self._admit(size_of(path), 0)
        with full_disk_is_no_space():
            settle(path, self._place(digest))

    def exists(self, digest: str) -> bool:
        """See `ArtifactStore.exists`."""
        return self._place(digest).is_file()

    def path(self, digest: str) -> Path:
        """See `ArtifactStore.path`."""
        if not self.exists(digest):
            raise FileNotFoundError(digest)
        return self._place(digest)

    def open(self, digest: str) -> StoredFile:
        """See `ArtifactStore.open`."""
        return StoredFile.open(self._place(digest), self._keys)

    def check(self) -> None:
        """See `ArtifactStore.check`."""
        with self.create() as probe:
            probe.write([b"\0"])

    def admit(self, size: int) -> None:
        """See `PartialStore.admit`."""
        self._admit(size, size)

    def received(self, upload: str) -> int:
        """See `PartialStore.received`."""
        try:
            with (self._uploads / upload).open("rb", buffering=0) as file:
                here = carried_on(file.fileno(), self._keys)
        except FileNotFoundError:
            return 0
        return 0 if here is None else here[1]

    def resume(self, upload: str) -> Incoming:
        """See `PartialStore.resume`. Where this process wrote last, what it hashed then is not read again."""
        last = self._resumed.get(upload)
        known = None if last is None else (last.size, last.hasher)
        made = IncomingFile(
            self._uploads / upload,
            place=self._place,
            admit=self._admit,
            flusher=self._flusher,
            keys=self._keys,
            kept=True,
            known=known,
        )
        self._resumed[upload] = made
        return made

    def forget(self, upload: str) -> None:
        """See `PartialStore.forget`."""
        self._resumed.pop(upload, None)
        (self._uploads / upload).unlink(missing_ok=True)

    def forgotten(self, seconds: float) -> list[str]:
        """See `PartialStore.forgotten`."""
        return [left.name for left in self._uploads.iterdir() if time.time() - left.stat().st_mtime > seconds]

    def _place(self, digest: str) -> Path:
        return place_of(self._directory, digest)

    def _admit(self, size: int, more: int) -> None:
        """Whether a file may reach `size` bytes, `more` of which still need room."""
        if size > self._max_bytes:
            raise ArtifactTooLarge(f"an artifact may have {self._max_bytes} bytes at most")
        free = shutil.disk_usage(self._incoming).free
        if free - more < self._reserve_bytes:
            raise NoSpace(f"{free} bytes are free in the artifact store, of which {self._reserve_bytes} stay so")


def place_of(directory: Path, digest: str) -> Path:
    """Where an artifact lies in a store."""
    return directory / digest[:2] / digest

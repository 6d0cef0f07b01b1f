"""Files stored under the SHA-256 of their bytes: `<directory>/ab/abcdef…`.

A file is hashed while it is written, under a temporary name in the same directory, and appears under its digest all at
once. Whatever goes wrong before leaves nothing behind; what a killed process left is swept at the next start.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from concilia_kit import tensorfile

from concilia_model.errors import ArtifactMalformed, ArtifactTooLarge, NoSpace

Chunk = bytes | memoryview

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_STALE_SECONDS = 6 * 3600.0


class Incoming(Protocol):
    """An artifact on its way in. A context manager: what is not committed inside it is gone afterwards."""

    size: int

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Append bytes. Raises `ArtifactTooLarge` and `NoSpace`."""

    def digest(self) -> str:
        """SHA-256 of what was written so far."""

    def header(self) -> tensorfile.Header:
        """The header of what was written. Raises `ArtifactMalformed`."""

    def commit(self) -> None:
        """Make it durable and visible under its digest. Raises `NoSpace`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ArtifactStore(Protocol):
    """Where artifacts lie."""

    def create(self, announced: int = 0) -> Incoming:
        """Begin an artifact of `announced` bytes, if known. Raises `ArtifactTooLarge` and `NoSpace`."""

    def exists(self, digest: str) -> bool:
        """Whether an artifact is there."""

    def path(self, digest: str) -> Path:
        """A local file with the artifact's bytes. Raises `FileNotFoundError`."""

    def open(self, digest: str) -> BinaryIO:
        """The artifact's bytes from the start. Raises `FileNotFoundError`."""

    def check(self) -> None:
        """Raise `OSError` or `NoSpace` where nothing can be written."""


class DirectoryStore:
    """Artifacts in a directory of one file system, which several processes may share."""

    def __init__(self, directory: Path, max_bytes: int, reserve_bytes: int) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes

    def prepare(self) -> None:
        """Make the directory, and sweep what killed uploads left long ago. Raises `OSError`."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink(missing_ok=True)

    def create(self, announced: int = 0) -> Incoming:
        """See `ArtifactStore.create`."""
        self._admit(announced)
        return _IncomingFile(self, self._incoming / secrets.token_hex(16))

    def exists(self, digest: str) -> bool:
        """See `ArtifactStore.exists`."""
        return self._place(digest).is_file()

    def path(self, digest: str) -> Path:
        """See `ArtifactStore.path`."""
        if not self.exists(digest):
            raise FileNotFoundError(digest)
        return self._place(digest)

    def open(self, digest: str) -> BinaryIO:
        """See `ArtifactStore.open`."""
        return self._place(digest).open("rb")

    def check(self) -> None:
        """See `ArtifactStore.check`."""
        with self.create() as probe:
            probe.write([b"\0"])

    def _place(self, digest: str) -> Path:
        return self._directory / digest[:2] / digest

    def _admit(self, size: int, more: int | None = None) -> None:
        """Whether a file may reach `size` bytes, `more` of which still need room (all of them by default)."""
        if size > self._max_bytes:
            raise ArtifactTooLarge(f"an artifact may have {self._max_bytes} bytes at most")
        free = shutil.disk_usage(self._incoming).free
        if free - (size if more is None else more) < self._reserve_bytes:
            raise NoSpace(f"{free} bytes are free in the artifact store, of which {self._reserve_bytes} stay so")


class _IncomingFile:
    """An artifact being written to a `DirectoryStore`."""

    def __init__(self, store: DirectoryStore, path: Path) -> None:
        self.size = 0
        self._store = store
        self._path = path
        self._hasher = hashlib.sha256()
        self._descriptor = -1

    def __enter__(self) -> Self:
        with _full_disk_is_no_space():
            # Readable to other processes that mount the store.
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def write(self, chunks: Iterable[Chunk]) -> None:
        """See `Incoming.write`."""
        views = [memoryview(chunk) for chunk in chunks]
        more = sum(map(len, views))
        self._store._admit(self.size + more, more)
        for view in views:
            self._hasher.update(view)
            with _full_disk_is_no_space():
                while view:
                    view = view[os.write(self._descriptor, view) :]
        self.size += more

    def digest(self) -> str:
        """See `Incoming.digest`."""
        return self._hasher.hexdigest()

    def header(self) -> tensorfile.Header:
        """See `Incoming.header`."""
        try:
            return tensorfile.TensorFile.open(self._path).header
        except tensorfile.MalformedFile as error:
            raise ArtifactMalformed(f"no acceptable safetensors file: {error}") from error

    def commit(self) -> None:
        """See `Incoming.commit`."""
        place = self._store._place(self.digest())
        with _full_disk_is_no_space():
            os.fsync(self._descriptor)
            place.parent.mkdir(exist_ok=True)
            self._path.replace(place)
            # The name is durable when the folder is.
            folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def _full_disk_is_no_space() -> Iterator[None]:
    """Translate the operating system's words for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace("the disk of the artifact store is full") from error
        raise

"""A file on its way into the artifact store: hashed as it is written, and on its way to the disk before it is whole.
Where the store has a key it is sealed as it is written; all sizes and offsets are those of what came.

Every `FLUSH_BYTES` the kernel is told to write out what came so far, in a thread, while the rest arrives: the last
flush is short, and a disk that does not keep up slows the writer down before it fills the memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from concilia_kit import tensorheader
from concilia_kit.sealing import OVERHEAD, Keyring, Seal
from concilia_kit.storedfile import carried_on

from concilia_model.errors import ArtifactMalformed, NoSpace, UploadLocked, UploadNotFound

Chunk = bytes | memoryview

FLUSH_BYTES = 16 * 2**20
_READ = 2**20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Hasher(Protocol):
    """A SHA-256 under way, as `hashlib` makes it."""

    def update(self, data: Chunk, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The digest of what was taken so far."""


class IncomingFile:
    """A file being written under a temporary name; `place` says where it will lie under its digest.

    `size` bytes are written and hashed. `admit` is asked before each write with the size then reached and the bytes
    that are new, and raises to refuse. A file that is not `kept` is gone after `close` unless it was committed.
    Not thread-safe: one writes at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        place: Callable[[str], Path],
        admit: Callable[[int, int], None],
        flusher: Executor,
        keys: Keyring,
        kept: bool = False,
        known: tuple[int, Hasher] | None = None,
    ) -> None:
        """`known` are a size and the hasher that took that many bytes; where the file has another size, it is read
        once. What cannot be gone on with (`carried_on`) is begun anew. Raises `UploadLocked` where another process
        writes to it, and `NoSpace`."""
        self._path = path
        self._place = place
        self._admit = admit
        self._flusher = flusher
        self._kept = kept
        self._flush: Future[None] | None = None
        with full_disk_is_no_space():
            # Readable to other processes that mount the store.
            new = 0 if kept else os.O_EXCL
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | new, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._seal, self.size = carried_on(self._descriptor, keys) or self._begin(keys)
            self._content = 0 if self._seal is None else OVERHEAD
            self.hasher = known[1] if known is not None and known[0] == self.size else self._read_again()
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise UploadLocked("another process is writing to this upload; try again") from error
        except BaseException:
            if not kept:
                path.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        self._flushed = self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Append bytes. Raises `ArtifactTooLarge` and `NoSpace`."""
        views = [memoryview(chunk) for chunk in chunks]
        more = sum(map(len, views))
        self._admit(self.size + more, more)
        with full_disk_is_no_space():
            for view in views:
                self._append(view if self._seal is None else memoryview(self._seal.at(self.size)(view)))
                self.hasher.update(view)
                self.size += len(view)  # what was written in part counts as not hashed
            if self.size - self._flushed >= FLUSH_BYTES:
                self._await_flush()
                self._flush = self._flusher.submit(os.fdatasync, self._descriptor)
                self._flushed = self.size

    def flush(self) -> None:
        """Have every byte on the disk. Raises `NoSpace`."""
        with full_disk_is_no_space():
            self._await_flush()
            os.fdatasync(self._descriptor)
            self._flushed = self.size

    def digest(self) -> str:
        """SHA-256 of what was written so far."""
        return self.hasher.hexdigest()

    def header(self) -> tensorheader.RawHeader:
        """The header of what was written. Raises `ArtifactMalformed`."""
        try:
            start = self._read(0, 8)
            start += self._read(8, tensorheader.header_length(start, self.size))
            return tensorheader.parse(start, self.size)
        except tensorheader.MalformedFile as error:
            raise ArtifactMalformed(f"no acceptable safetensors file: {error}") from error

    def commit(self) -> None:
        """Make it durable and visible under its digest. Raises `NoSpace`, and `UploadNotFound` for a file that was
        taken away meanwhile."""
        place = self._place(self.digest())
        with full_disk_is_no_space():
            self._await_flush()
            os.fsync(self._descriptor)
            try:
                settle(self._path, place)
            except FileNotFoundError as error:
                raise UploadNotFound("this upload was ended while it went on") from error

    def close(self) -> None:
        """Let go of the file; without `kept` what was not committed is gone."""
        try:
            if not self._kept:
                self._path.unlink(missing_ok=True)
            if self._flush is not None:
                self._flush.exception()  # the descriptor is in use until then; who wants to know flushes
        finally:
            os.close(self._descriptor)

    def _begin(self, keys: Keyring) -> tuple[Seal | None, int]:
        os.ftruncate(self._descriptor, 0)
        if (seal := keys.seal()) is not None:
            with full_disk_is_no_space():
                self._append(memoryview(seal.header))
        return seal, 0

    def _append(self, left: memoryview) -> None:
        while left:
            left = left[os.write(self._descriptor, left) :]

    def _read(self, offset: int, count: int) -> bytes:
        found = os.pread(self._descriptor, count, self._content + offset)
        return found if self._seal is None else self._seal.at(offset)(found)

    def _await_flush(self) -> None:
        if self._flush is not None:
            self._flush.result()
            self._flush = None

    def _read_again(self) -> Hasher:
        hasher, position = hashlib.sha256(), 0
        while piece := self._read(position, _READ):
            hasher.update(piece)
            position += len(piece)
        return hasher


def settle(path: Path, place: Path) -> None:
    """Give a file that is on the disk its lasting name, durably. Raises `OSError`."""
    place.parent.mkdir(exist_ok=True)
    path.replace(place)
    # The name is durable when the folder is.
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def full_disk_is_no_space() -> Iterator[None]:
    """Translate the operating system's words for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace("the disk of the artifact store is full") from error
        raise

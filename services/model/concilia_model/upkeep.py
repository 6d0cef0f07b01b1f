"""Stored files read again, put aside and deleted; how much there is of them.

A file that is deleted or put aside is renamed first: whoever has it open or mapped reads it to its end, and what is
brought under its digest meanwhile is another file, which stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import StoredFile, digest_of, size_of

from concilia_model.artifacts import INCOMING, QUARANTINE, UPLOADS, place_of
from concilia_model.incoming import settle

_BROKEN = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})  # the disk's and the file system's own words for damage

Pace = Callable[[int], None]
"""Told how many bytes were just read; may wait, or raise to stop."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """What a file hashes to, None where the disk does not give it; which file that was (device, inode); its bytes."""

    digest: str | None
    file: tuple[int, int]
    size: int


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of files, and their bytes together."""

    files: int
    bytes: int


class Upkeep(Protocol):
    """What is done to files that are in a store already."""

    def hash(self, digest: str, pace: Pace, *, from_disk: bool = False) -> Hashed:
        """Read an artifact's file again, `from_disk` rather than from the memory where it may be kept. Raises
        `FileNotFoundError`, `SealingKeyUnknown` and what `pace` raises."""

    def reseal(self, digest: str, pace: Pace) -> bool:
        """Write an artifact's file anew where it lies plain or under an older key and there is a current one; whether
        that was done. At any moment the one or the other is there, whole. Raises as `hash`, and `OSError`."""

    def put_aside(self, digest: str, file: tuple[int, int]) -> bool:
        """Move an artifact's file into quarantine; whether that was the one named, which else stays."""

    def delete(self, digest: str, confirmed: Callable[[], bool]) -> bool:
        """Delete an artifact's file, which is out of the way when `confirmed` is asked; whether it is gone. Where it
        was not confirmed, it is back."""

    def unfinished(self) -> Amount:
        """What has come of resumable uploads."""

    def quarantined(self) -> Amount:
        """What was put aside."""

    def free(self) -> int:
        """Bytes free on the disk."""


class DirectoryUpkeep:
    """`Upkeep` of a `DirectoryStore`'s directory."""

    def __init__(self, directory: Path, keys: Keyring = NO_KEYS) -> None:
        self._directory = directory
        self._keys = keys

    def hash(self, digest: str, pace: Pace, *, from_disk: bool = False) -> Hashed:
        """See `Upkeep.hash`."""
        hasher, size = hashlib.sha256(), 0
        with StoredFile.open(place_of(self._directory, digest), self._keys) as file:
            which = file.stat.st_dev, file.stat.st_ino
            if from_disk:
                os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                for piece in file.pieces():
                    hasher.update(piece)
                    pace(len(piece))
                    if from_disk:  # nor does it push out of memory what others read
                        os.posix_fadvise(file.descriptor, file.begin + size, len(piece), os.POSIX_FADV_DONTNEED)
                    size += len(piece)
            except OSError as error:
                if error.errno in _BROKEN:
                    return Hashed(None, which, size)
                raise
        return Hashed(hasher.hexdigest(), which, size)

    def reseal(self, digest: str, pace: Pace) -> bool:
        """See `Upkeep.reseal`."""
        place, anew = place_of(self._directory, digest), self._directory / INCOMING / secrets.token_hex(16)
        with StoredFile.open(place, self._keys) as file:
            seal = self._keys.seal()
            if seal is None or self._keys.is_current(file.seal):
                return False
            try:
                with anew.open("xb") as made:
                    sealed = seal.at(0)
                    made.write(seal.header)
                    for piece in file.pieces():
                        made.write(sealed(piece))
                        pace(len(piece))
                    made.flush()
                    os.fsync(made.fileno())
                # What is there goes when this takes its place: so this is read again, and not what was to be written.
                if digest_of(anew, self._keys) != digest:
                    return False
                with _alone(place.parent):
                    found = place.stat()
                    if (found.st_dev, found.st_ino) != (file.stat.st_dev, file.stat.st_ino):
                        return False
                    settle(anew, place)
            finally:
                anew.unlink(missing_ok=True)
        return True

    def put_aside(self, digest: str, file: tuple[int, int]) -> bool:
        """See `Upkeep.put_aside`."""
        folder = self._directory / QUARANTINE
        folder.mkdir(exist_ok=True)
        aside = folder / f"{digest}.{secrets.token_hex(4)}"
        try:
            self._take_away(digest, aside)
        except FileNotFoundError:
            return False
        found = aside.stat()
        if (found.st_dev, found.st_ino) == file:
            return True
        self._put_back(aside, digest)
        return False

    def delete(self, digest: str, confirmed: Callable[[], bool]) -> bool:
        """See `Upkeep.delete`."""
        aside = self._directory / INCOMING / secrets.token_hex(16)
        try:
            self._take_away(digest, aside)
        except FileNotFoundError:
            return True
        try:
            gone = confirmed()
        except BaseException:
            self._put_back(aside, digest)
            raise
        if gone:
            aside.unlink(missing_ok=True)
        else:
            self._put_back(aside, digest)
        return gone

    def unfinished(self) -> Amount:
        """See `Upkeep.unfinished`."""
        return _amount(self._directory / UPLOADS)

    def quarantined(self) -> Amount:
        """See `Upkeep.quarantined`."""
        return _amount(self._directory / QUARANTINE)

    def free(self) -> int:
        """See `Upkeep.free`."""
        return shutil.disk_usage(self._directory).free

    def _take_away(self, digest: str, aside: Path) -> None:
        place = place_of(self._directory, digest)
        with _alone(place.parent):  # else a file that is written anew could come back
            place.rename(aside)

    def _put_back(self, aside: Path, digest: str) -> None:
        with contextlib.suppress(FileExistsError):  # brought again meanwhile
            os.link(aside, place_of(self._directory, digest))
        aside.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process or thread takes a file of this folder away or writes one anew. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _amount(folder: Path) -> Amount:
    files, size = 0, 0
    try:
        for entry in os.scandir(folder):
            try:
                size += size_of(Path(entry.path))
            except FileNotFoundError:
                continue
            files += 1
    except FileNotFoundError:
        pass
    return Amount(files, size)

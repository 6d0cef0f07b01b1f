"""Stored files read again, put aside and deleted; how much there is of them.

A file that is deleted or put aside is renamed first: whoever has it open or mapped reads it to its end, and what is
brought under its digest meanwhile is another file, which stays.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from concilia_model.artifacts import INCOMING, QUARANTINE, UPLOADS, place_of

_READ = 2**20
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
        `FileNotFoundError` and what `pace` raises."""

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

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def hash(self, digest: str, pace: Pace, *, from_disk: bool = False) -> Hashed:
        """See `Upkeep.hash`."""
        hasher, size = hashlib.sha256(), 0
        with place_of(self._directory, digest).open("rb", buffering=0) as file:
            descriptor = file.fileno()
            found = os.fstat(descriptor)
            which = found.st_dev, found.st_ino
            if from_disk:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                while piece := file.read(_READ):
                    hasher.update(piece)
                    size += len(piece)
                    pace(len(piece))
                    if from_disk:  # nor does it push out of memory what others read
                        os.posix_fadvise(descriptor, size - len(piece), len(piece), os.POSIX_FADV_DONTNEED)
            except OSError as error:
                if error.errno in _BROKEN:
                    return Hashed(None, which, size)
                raise
        return Hashed(hasher.hexdigest(), which, size)

    def put_aside(self, digest: str, file: tuple[int, int]) -> bool:
        """See `Upkeep.put_aside`."""
        folder = self._directory / QUARANTINE
        folder.mkdir(exist_ok=True)
        aside = folder / f"{digest}.{secrets.token_hex(4)}"
        try:
            place_of(self._directory, digest).rename(aside)
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
            place_of(self._directory, digest).rename(aside)
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

    def _put_back(self, aside: Path, digest: str) -> None:
        with contextlib.suppress(FileExistsError):  # brought again meanwhile
            os.link(aside, place_of(self._directory, digest))
        aside.unlink()


def _amount(folder: Path) -> Amount:
    files, size = 0, 0
    try:
        for entry in os.scandir(folder):
            try:
                size += entry.stat().st_size
            except FileNotFoundError:
                continue
            files += 1
    except FileNotFoundError:
        pass
    return Amount(files, size)

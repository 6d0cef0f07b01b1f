"""Locks on files that a process holds until it lets go or dies, however it dies.

`flock(2)` belongs to the open file: the kernel frees it with the process, so that after SIGKILL or `docker kill` the
next taker has it at once and there is nothing to clean up. It counts between containers too, as long as they run on
one kernel and the file lies on a local volume that they share; on a network file system it may count for nothing.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """One taker's hold on a file, made where it is missing. Two holds exclude each other within one process too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self, *, shared: bool = False) -> bool:
        """Try, without waiting; whether it is held now. A hold that was there is given up first. Raises `OSError`."""
        self.release()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let go, where it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

"""SHA-256 of a folder's files, computed once for each state of a file.

A file's state is its size, its times of change of content and of inode, and its inode. The second time is the kernel's
own: no program that puts a file's date back can put that back too. A file that changed within seconds of being read is
read again the next time, since clocks of file systems are coarse: a change may have followed that bears the same time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from concilia_kit import digests
from concilia_kit.digests import Digest
from pydantic import TypeAdapter, ValidationError

from concilia_client_node import flushing

SETTLED_SECONDS = 5

_State = tuple[int, int, int, int]
_KNOWN: TypeAdapter[dict[str, tuple[_State, Digest]]] = TypeAdapter(dict[str, tuple[_State, Digest]])


class Fingerprints:
    """Of files below `root`; what is known of earlier is in the file `known`."""

    def __init__(self, known: Path, root: Path) -> None:
        self._file, self._root = known, root
        self._earlier = _read(known)
        self._now: dict[str, tuple[_State, Digest]] = {}
        self._said: dict[Path, Digest | None] = {}

    def of(self, path: Path) -> Digest | None:
        """SHA-256 of a file's bytes, the same however often it is asked for; None where it cannot be read."""
        if path not in self._said:
            self._said[path] = self._look(path)
        return self._said[path]

    def keep(self) -> None:
        """Write down what was asked for. Raises `OSError`."""
        if self._now != self._earlier:
            flushing.write_whole(self._file, _KNOWN.dump_json(self._now))

    def _look(self, path: Path) -> Digest | None:
        name = os.fsencode(path.relative_to(self._root)).decode(errors="backslashreplace")
        try:
            state = _state(path)
            if (found := self._earlier.get(name)) is not None and found[0] == state:
                self._now[name] = found
                return found[1]
            begun = time.time_ns()
            digest = digests.of_file(path)
            if _state(path) == state and max(state[1:3]) < begun - SETTLED_SECONDS * 10**9:
                self._now[name] = (state, digest)
        except OSError:
            return None
        return digest


def _read(path: Path) -> dict[str, tuple[_State, Digest]]:
    try:
        return _KNOWN.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}  # all are read once more


def _state(path: Path) -> _State:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

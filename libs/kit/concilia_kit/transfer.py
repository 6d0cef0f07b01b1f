"""Artifacts to and from the model service over lines that break: each break costs at most one chunk.

An upload is tus 1.0 with the artifact's SHA-256 in its metadata: who asks for the same upload again finds it where it
stands, after a restart too. A download goes on with a range of what never changes. Both hash or send in one pass, with
a fixed amount of memory, and need no more of the disk than the file itself.

Source: tus 1.0.0 (tus.io/protocols/resumable-upload), RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import httpx

from concilia_kit.problems import Problem, Unavailable
from concilia_kit.sealing import NO_KEYS, Keyring, Seal
from concilia_kit.storedfile import StoredFile, carried_on
from concilia_kit.streaming import LINE_ERRORS, Answer, Check, Line, Part

CHUNK = 32 * 2**20
PATIENCE_SECONDS = 30.0
_PROGRESS_SECONDS = 1.0
_LONGEST_PAUSE = 3.0
_READ = 2**20
_TUS = {"Tus-Resumable": "1.0.0"}
# Answers after which the same may succeed: the service is busy or restarting, or a request that is long dead was ended.
_LATER = frozenset({408, 409, 423, 425, 429, 502, 503, 504})

Progress = Callable[[float], None]
"""Told the share that has moved, from 0 to 1, about once a second."""


class WrongBytes(Exception):
    """What was downloaded does not hash to its digest."""


class TooLarge(WrongBytes):
    """What is downloaded has more bytes than are accepted."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """A file of `size` bytes that is there: `moved` bytes went over the line now, `again` of them for another time
    because it broke, which it did `breaks` times."""

    size: int
    moved: int
    again: int
    breaks: int


def _nothing(*_: object) -> None:
    """What is called where nobody wants to know."""


def upload(
    to: httpx.Client,
    digest: str,
    path: Path,
    *,
    chunk: int = CHUNK,
    check: Check = _nothing,
    progress: Progress = _nothing,
    patience: float = PATIENCE_SECONDS,
    keys: Keyring | None = None,
) -> Transferred:
    """Bring a file to the model service under its digest, unless it has it from this caller.

    `check` is called at least once a second or megabyte and may raise to stop; what came stays, for the next call.
    With `keys` it may be sealed, and what is brought is its content. Raises `Unavailable` when nothing could be brought
    for `patience` seconds, `Problem` where the service refuses, `SealingKeyUnknown`, and `OSError` for the file.
    """
    with StoredFile.open(path, keys) as file:
        sending = _Upload(to, digest, file, chunk, _Pace(check, progress, patience))
        with sending.line:
            return sending.run()


def download(
    to: httpx.Client,
    digest: str,
    path: Path,
    *,
    check: Check = _nothing,
    progress: Progress = _nothing,
    patience: float = PATIENCE_SECONDS,
    max_bytes: int = 2**40,
    verify: bool = True,
    keys: Keyring = NO_KEYS,
) -> Transferred:
    """Fetch an artifact into `path`, which appears when all of it is there and hashes to `digest`.

    What came before an interruption stays beside it as `<name>.partial` and is gone on with by the next call. Without
    `verify` other bytes are taken as well, for a caller that wants to show them to be other. The file is sealed where
    `keys` have a current one. Raises `WrongBytes`, `TooLarge`, and otherwise as `upload` does.
    """
    pace = _Pace(check, progress, patience)
    with _Partial(path, keys) as partial, Line(to, check) as line:
        began = partial.size
        while partial.hasher.hexdigest() != digest:
            if partial.whole and not began:
                if verify:
                    partial.restart()
                    raise WrongBytes(f"the bytes that came do not hash to {digest}")
                break
            if partial.whole:  # what lay there was of another file, or broken
                partial.restart()
                began = 0
            _attempt(pace, lambda: _fetch(line, digest, partial, pace, max_bytes))
        partial.finish()
        progress(1.0)
        return Transferred(partial.size, partial.came, partial.came - (partial.size - began), pace.breaks)


def _attempt(pace: _Pace, step: Callable[[], None]) -> bool:
    """Whether `step` went through; where it did not and may the next time, after a pause."""
    try:
        step()
    except _Disk as error:
        raise error.reason from None
    except LINE_ERRORS as error:
        pace.breaks += 1
        pace.pause(Unavailable(f"the model service cannot be reached ({type(error).__name__})"))
    except Problem as problem:
        if problem.problem_status not in _LATER:
            raise
        pace.pause(problem)
    else:
        return True
    return False


class _Disk(Exception):
    """An error of this machine's disk, which is no broken line."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Pace:
    """How far a transfer is, and how long to wait before the next try."""

    def __init__(self, check: Check, progress: Progress, patience: float) -> None:
        self.breaks = 0
        self.check = check
        self._progress = progress
        self._patience = patience
        self._reached = -1
        self._since = self._told = time.monotonic()
        self._tries = 0

    def reach(self, position: int, size: int) -> None:
        """So many bytes are there now."""
        if position <= self._reached:
            return
        self._reached, self._tries, self._since = position, 0, time.monotonic()
        if self._since - self._told >= _PROGRESS_SECONDS:
            self._told = self._since
            self._progress(position / size if size else 1.0)

    def pause(self, error: Problem) -> None:
        """Wait, longer each time nothing was reached, and for as long as the service asks. Raises `error` where that
        went on, or would go on, for too long."""
        self.check()
        asked = error.retry_after() or 0.0
        if time.monotonic() - self._since + asked > self._patience:
            raise error
        jitter = random.uniform(0, min(_LONGEST_PAUSE, 0.05 * 2**self._tries))  # noqa: S311
        until = time.monotonic() + asked + jitter
        self._tries += 1
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
            self.check()


class _Upload:
    """An upload from where the service has it to its end."""

    def __init__(self, to: httpx.Client, digest: str, file: StoredFile, chunk: int, pace: _Pace) -> None:
        self.line = Line(to, pace.check, self._count)
        self._to = to
        self._file = file
        self._size = file.size
        self._metadata = "digest " + base64.b64encode(digest.encode()).decode()
        self._chunk = chunk
        self._pace = pace
        self._location: str | None = None
        self._offset: int | None = None  # None: to be asked for
        self._first: int | None = None
        self._moved = 0

    def run(self) -> Transferred:
        """Until the service has all of it."""
        while self._offset != self._size or self._location is None:
            if not _attempt(self._pace, self._step):
                self._offset = None
        needed = self._size - (self._first or 0)
        return Transferred(self._size, self._moved, self._moved - needed, self._pace.breaks)

    def _step(self) -> None:
        if self._location is None:
            headers = {"Upload-Length": str(self._size), "Upload-Metadata": self._metadata, "Content-Length": "0"}
            answer = self.line.ask("POST", "/v1/uploads", {**_TUS, **headers})
            self._location = f"/v1/{answer.headers['location']}"
        else:
            try:
                answer = self._go_on(self._location)
            except Problem as problem:
                if problem.problem_status in (404, 410):  # it expired; begun anew by the next step
                    self._location = self._offset = None
                    raise Unavailable("the upload is gone") from problem
                raise
        self._offset = int(answer.headers["upload-offset"])
        if self._first is None:
            self._first = self._offset
        self._pace.reach(self._offset, self._size)

    def _go_on(self, location: str) -> Answer:
        if self._offset is None:
            return self.line.ask("HEAD", location, _TUS)
        part = Part(self._file, self._offset, min(self._chunk, self._size - self._offset))
        headers = {"Upload-Offset": str(self._offset), "Content-Type": "application/offset+octet-stream"}
        return self.line.ask("PATCH", location, {**_TUS, **headers}, part)

    def _count(self, moved: int) -> None:
        self._moved += moved


class _Partial:
    """The part of a download that is on the disk, locked: who fetches the same meanwhile has a file of its own."""

    def __init__(self, path: Path, keys: Keyring) -> None:
        self._path = path
        self._keys = keys
        self._seal: Seal | None = None
        self._partial = path.with_name(f"{path.name}.partial")
        self._file: BinaryIO
        self.hasher = hashlib.sha256()
        self.size = 0
        self.came = 0
        self.whole = False

    def __enter__(self) -> Self:
        self._file = self._partial.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self._partial.open("rb") as there:  # not one that was renamed before it was locked
                mine = os.path.sameopenfile(there.fileno(), self._file.fileno())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            self._file.close()
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name, suffix=".partial")
            self._partial, self._file = Path(name), os.fdopen(descriptor, "a+b", buffering=0)
        self._own = not mine
        if (here := carried_on(self._file.fileno(), self._keys)) is None:
            self.restart()
            return self
        self._seal, end = here
        with StoredFile(os.dup(self._file.fileno()), self._keys) as there:
            for piece in there.pieces():
                self.hasher.update(piece)
        self.size = end
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and (self._own or self.size == 0):
            self._partial.unlink(missing_ok=True)
        self._file.close()

    def append(self, piece: bytes) -> None:
        """Take more bytes. Raises `OSError` as `_Disk`."""
        try:
            self._file.write(piece if self._seal is None else self._seal.at(self.size)(piece))
        except OSError as error:
            raise _Disk(error) from error
        self.hasher.update(piece)
        self.size += len(piece)
        self.came += len(piece)

    def restart(self) -> None:
        """Begin from nothing."""
        self._file.truncate(0)
        if (seal := self._keys.seal()) is not None:
            self._file.write(seal.header)
        self._seal = seal
        self.hasher, self.size, self.whole = hashlib.sha256(), 0, False

    def finish(self) -> None:
        """All of it is there."""
        self._partial.replace(self._path)


def _fetch(line: Line, digest: str, partial: _Partial, pace: _Pace, max_bytes: int) -> None:
    """The rest of an artifact. Raises `TooLarge`."""
    headers = {"Range": f"bytes={partial.size}-", "If-Range": f'"{digest}"'} if partial.size else {}
    try:
        answer = line.ask("GET", f"/v1/artifacts/{digest}", headers)
    except Problem as problem:
        if problem.problem_status != 416:
            raise
        partial.whole = True  # and more than that, since its hash is another
        return
    if answer.status != 206:
        partial.restart()
    size = partial.size + int(answer.headers.get("content-length", 0))
    for piece in line.body():
        if max(size, partial.size + len(piece)) > max_bytes:
            partial.restart()
            raise TooLarge(f"the artifact has more than the {max_bytes} bytes accepted")
        partial.append(piece)
        pace.reach(partial.size, size)
    partial.whole = True

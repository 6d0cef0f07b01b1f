"""Whether stored files still have the bytes that they are named after, and what becomes of one that has not.

A disk may flip a bit or lose a sector long after a file was written and hashed. Such a file is put aside and its
artifact is told to be so, so that nobody is given other bytes and whoever has the right ones may bring them again. It
is found by who was given it and asks for a look, and by the scrub, which reads one file after another, slowly. What it
finds plain or under an older key, where the store has a newer one, it seals anew. A file under a key that is not there
says nothing of its bytes and stays where it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

import anyio
import anyio.to_thread
from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.sealing import SealingKeyUnknown
from concilia_kit.wire.models import ArtifactCheck

from concilia_model.artifacts import ArtifactStore
from concilia_model.errors import ArtifactNotFound, ArtifactQuarantined, ArtifactRemoved
from concilia_model.metrics import ModelMetrics
from concilia_model.store import Removal, Removed, Store
from concilia_model.upkeep import Pace, Upkeep

SCRUB_AGAIN_SECONDS = 86400.0
"""A file that was hashed is left alone for so long."""
_IDLE_SECONDS = 60.0  # between looks where no file is to be hashed
_MEGABYTE = 10**6
_log = logs.get(__name__)


class Found(StrEnum):
    """How a changed file was found."""

    ASKED = "asked"
    SCRUB = "scrub"


class _Stopped(Exception):
    """The service ends."""


def absent(store: Store, digest: str) -> Problem:
    """Why the file of an artifact is not there: `ArtifactRemoved`, `ArtifactQuarantined` or `ArtifactNotFound`."""
    removed, artifact = store.removed(digest), store.artifact(digest)
    if removed is None or artifact is None:
        return ArtifactNotFound(f"there is no artifact {digest}")
    at = datetime.fromtimestamp(removed.at, UTC).isoformat()
    extra = {"removed_at": at, "artifact": artifact.model_dump(mode="json")}
    if removed.because is Removal.POLICY:
        return ArtifactRemoved(f"the file of artifact {digest} was deleted by policy at {at}", extra=extra)
    return ArtifactQuarantined(
        f"the file of artifact {digest} had changed and was put aside at {at}; bring it again if you have it",
        extra=extra,
    )


class Integrity:
    """Looks at stored files, on request and by itself."""

    def __init__(
        self,
        files: ArtifactStore,
        upkeep: Upkeep,
        store: Store,
        *,
        scrub_rate: float,
        clock: Callable[[], float] = time.time,
        metrics: ModelMetrics | None = None,
    ) -> None:
        """The scrub reads `scrub_rate` MB a second; 0: there is none."""
        self._files = files
        self._upkeep = upkeep
        self._store = store
        self._rate = scrub_rate * _MEGABYTE
        self._clock = clock
        self._metrics = metrics or ModelMetrics()
        self._ends = threading.Event()
        self._turns = anyio.CapacityLimiter(1)

    async def check(self, digest: str) -> ArtifactCheck:
        """Look at an artifact's file; one look at a time, and who waited for another's takes its answer. Raises as
        `inspect`."""
        return await anyio.to_thread.run_sync(self._check, digest, self._clock(), limiter=self._turns)

    def inspect(self, digest: str, found: Found, pace: Pace = lambda _size: None) -> bool:
        """Hash an artifact's file, and put it aside if it has other bytes than it is named after; whether it has not.

        Raises `ArtifactNotFound`, `ArtifactRemoved` and `ArtifactQuarantined` where there is no file, and
        `SealingKeyUnknown`.
        """
        while True:
            try:
                hashed = self._upkeep.hash(digest, pace, from_disk=found is Found.SCRUB)
            except FileNotFoundError as error:
                raise absent(self._store, digest) from error
            if hashed.digest == digest:
                self._store.checked(digest, self._clock())
                self._store.keep(digest)  # it may have been put back by hand
                return True
            if self._upkeep.put_aside(digest, hashed.file):
                break
            # Another file is there by now, brought while this one was hashed.
        self._metrics.corrupt.labels(found.value).inc()
        _log.error(
            "artifact corrupt, its file is put aside",
            artifact=digest,
            hashes_to=hashed.digest or "unreadable",
            found=found.value,
        )
        removed = Removed(self._clock(), Removal.CORRUPT)
        while not self._files.exists(digest):
            seen = self._store.brought_at(digest)
            if seen is None or self._store.remove(digest, removed, seen):
                break
        return False

    def scrub(self) -> bool:
        """Look at the file that was hashed longest ago, if that is long ago; whether there was one. Raises `OSError`
        where it is sound and cannot be sealed anew."""
        now = self._clock()
        digest = self._store.checked_longest_ago(now - SCRUB_AGAIN_SECONDS)
        if digest is None:
            return False
        try:
            pace = self._pace()
            if self.inspect(digest, Found.SCRUB, pace) and self._upkeep.reseal(digest, pace):
                self._metrics.resealed.inc()
                _log.info("artifact sealed anew", artifact=digest)
        except ArtifactNotFound:
            self._store.checked(digest, now)  # not to be asked for at once again
            _log.error("artifact without its file", artifact=digest)
        except SealingKeyUnknown as problem:
            self._store.checked(digest, now)
            _log.error("artifact sealed under an unknown key", artifact=digest, key=problem.extra["key"])
        except (ArtifactRemoved, ArtifactQuarantined, FileNotFoundError):
            pass
        return True

    async def scrub_for_ever(self) -> None:
        """`scrub` again and again, at its rate; returns at once where that is 0."""
        turns = anyio.CapacityLimiter(1)
        while self._rate:
            try:
                if await anyio.to_thread.run_sync(self.scrub, abandon_on_cancel=True, limiter=turns):
                    continue
            except _Stopped:
                return
            except Exception as error:  # a database that is away now is there next time
                _log.warning("artifacts not scrubbed", error=type(error).__name__)
            await anyio.sleep(_IDLE_SECONDS)

    def stop(self) -> None:
        """End a scrub that is under way."""
        self._ends.set()

    def _check(self, digest: str, asked: float) -> ArtifactCheck:
        checked = self._store.checked_at(digest)
        intact = (checked is not None and checked > asked) or self.inspect(digest, Found.ASKED)
        return ArtifactCheck(digest=digest, intact=intact, checked_at=datetime.fromtimestamp(self._clock(), UTC))

    def _pace(self) -> Pace:
        began, done = time.monotonic(), 0

        def wait(size: int) -> None:
            nonlocal done
            done += size
            self._metrics.scrubbed.inc(size)
            if self._ends.wait(max(0.0, began + done / self._rate - time.monotonic())):
                raise _Stopped

        return wait

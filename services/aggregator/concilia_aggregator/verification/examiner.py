"""Verifying in the background: a thread of the worker's own, beside the one that moves jobs on.

It hashes and folds, which NumPy and hashlib do without holding the interpreter, and holds nothing that a round needs. A
worker that dies loses its lease; the verification is then begun again, by the next worker or by this one's successor.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path
from typing import Protocol

import redis
from concilia_kit import logs, signing
from concilia_kit.problems import Problem
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.wire.chain import LedgerEvent, LedgerUpdate, RecordedEvent
from concilia_kit.wire.verification import Verdict

from concilia_aggregator.leases import lease
from concilia_aggregator.tables import VerificationRow
from concilia_aggregator.verification import roles
from concilia_aggregator.verification.records import Superseded, Verifications
from concilia_aggregator.verification.verifier import ArtifactSource, Verifier

MOST_ATTEMPTS = 3
"""A verification that outlived so many workers is not begun again: it may be what ended them."""

_NOTE_SECONDS = 0.25
_LOOK_SECONDS = 0.5
_TROUBLE_SECONDS = 5.0

_log = logs.get(__name__)


class Records(Protocol):
    """What a verification needs of the ledger."""

    def domain(self) -> signing.Domain:
        """Where signatures are valid."""
        ...

    def events(self, job: str) -> list[LedgerEvent]:
        """A job's events in chain order."""
        ...

    def signed(self, job: str) -> list[LedgerUpdate]:
        """A job's updates with their signatures, those of a Merkle round by ascending index."""
        ...

    def role_events(self) -> list[RecordedEvent]:
        """All grants and revocations of roles."""
        ...


class _Ending(Exception):
    """The worker ends; what is under way is left to the next."""


class Examiner(threading.Thread):
    """Takes verifications up, one at a time. A daemon: what it leaves undone is found again."""

    def __init__(
        self,
        verifications: Verifications,
        ledger: Records,
        source: ArtifactSource,
        client: redis.Redis,
        directory: Path,
        keys: Keyring = NO_KEYS,
    ) -> None:
        """`keys` are those that the source's files may be sealed under."""
        super().__init__(name="examiner", daemon=True)
        self._verifications = verifications
        self._ledger = ledger
        self._source = source
        self._redis = client
        self._directory = directory
        self._keys = keys
        self._ending = threading.Event()

    def check(self) -> None:
        """A readiness check. Raises `RuntimeError` where verifications are not taken up."""
        if not self.is_alive():
            raise RuntimeError("the examiner does not run")

    def stop(self, patience: float) -> None:
        """End at the next step, or after `patience` seconds however far it is."""
        self._ending.set()
        self.join(patience)

    def run(self) -> None:
        """Take up what waits, and what another worker left, until stopped."""
        while not self._ending.is_set():
            pause = _LOOK_SECONDS
            try:
                self.look()
            except Exception as error:  # the database or Redis is away: the next look tries again
                _log.warning("verifications held up", error=type(error).__name__)
                pause = _TROUBLE_SECONDS
            self._ending.wait(pause)

    def look(self) -> None:
        """Bring what nobody works at to its end, one after another."""
        for row in self._verifications.unfinished():
            with lease(self._redis, f"verification:{row.id}") as held:
                if held and not self._ending.is_set():
                    with contextlib.suppress(Superseded):
                        self._examine(self._verifications.take(row))

    def _examine(self, row: VerificationRow) -> None:
        for left in self._directory.glob(f"{row.id}-*"):  # by a worker that died
            shutil.rmtree(left, ignore_errors=True)
        if row.attempts > MOST_ATTEMPTS:
            self._verifications.fail(row, f"{MOST_ATTEMPTS} workers ended while they were at it")
            return
        _log.info("verification begins", verification=row.id, job=row.job, attempt=row.attempts)
        folder = self._directory / f"{row.id}-{row.attempts}"  # one that was taken for dead removes its own only
        folder.mkdir(parents=True)
        try:
            self._verifications.finish(row, self._verdict(row, folder))
        except _Ending:
            self._verifications.put_back(row)
        except Problem as problem:
            self._verifications.fail(row, problem.detail)
        except Superseded:
            raise
        except Exception:
            _log.exception("verification failed", verification=row.id)
            self._verifications.fail(row, "an unexpected error; the log of the worker has it")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _verdict(self, row: VerificationRow, folder: Path) -> Verdict:
        current, noted = row, float("-inf")

        def progress(fraction: float, step: str) -> None:
            nonlocal current, noted
            if self._ending.is_set():
                raise _Ending
            if time.monotonic() - noted >= _NOTE_SECONDS:
                current = self._verifications.note(current, fraction, step)
                noted = time.monotonic()

        progress(0.0, "reading the ledger")
        events, signed = self._ledger.events(row.job), self._ledger.signed(row.job)
        history = roles.history(self._ledger.role_events())  # read last: it reaches as far as the job's events do
        verifier = Verifier(self._ledger.domain(), self._source, progress, folder, keys=self._keys)
        return verifier.verify(row.job, events, signed, roles=history)

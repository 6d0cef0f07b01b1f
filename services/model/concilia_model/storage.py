"""Keeps the store to its policy, and tells what lies in it.

A sweep reads the ledger first and deletes nothing where that cannot be had. An artifact's record is marked before its
file goes, and whoever brings the same bytes says so before storing them: of the two, the sweep gives way.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import anyio
import anyio.to_thread
from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.wire.models import Due, StorageReport, Stored, StoredKind

from concilia_model.artifacts import ArtifactStore
from concilia_model.ledgerindex import LedgerIndex
from concilia_model.metrics import ModelMetrics
from concilia_model.references import References
from concilia_model.retention import CLOCKS_SECONDS, DAY, Facts, Policy, goes
from concilia_model.store import Removal, Removed, Store
from concilia_model.upkeep import Amount, Upkeep

SHOWN = 100
"""Artifacts named in a report at most, of those that go next: the ones brought longest ago."""
_FRESH_SECONDS = 300.0  # a count is shown to scrapes for so long: it reads every record
_RETRY_SECONDS = 60.0  # after a sweep that failed: at a start the chain service may be a moment behind
_log = logs.get(__name__)


class StorageService:
    """Sweeps and reports."""

    def __init__(
        self,
        files: ArtifactStore,
        upkeep: Upkeep,
        store: Store,
        references: References,
        index: LedgerIndex,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.time,
        metrics: ModelMetrics | None = None,
    ) -> None:
        self._files = files
        self._upkeep = upkeep
        self._store = store
        self._references = references
        self._index = index
        self._policy = policy
        self._clock = clock
        self._metrics = metrics or ModelMetrics()
        self._reading = threading.Lock()
        self._counting = threading.Lock()
        self._counted: tuple[float, dict[str, tuple[int, int]]] | None = None

    def report(self, updates_days: float | None = None) -> StorageReport:
        """What is stored, and what a sweep would delete now, with `updates_days` in place of the policy's where given.
        Deletes nothing. Where the ledger cannot be read it is what is known of it, which has its date."""
        try:
            self._catch_up(self._clock())
        except Problem as problem:  # what is known has its date
            _log.warning("ledger not read", code=problem.problem_code)
        policy = self._policy if updates_days is None else Policy(updates_days * DAY, self._policy.orphans)
        now = self._clock()
        reading = self._references.reading(now)
        amounts: dict[StoredKind, Amount] = {}
        due: list[tuple[float, str, Facts]] = []
        due_files = due_bytes = 0
        for facts in self._references.facts():
            _add(amounts, facts)
            if goes(facts, policy, reading, now):
                due_files, due_bytes = due_files + 1, due_bytes + facts.size
                due.append((facts.brought_at, facts.digest, facts))
                if len(due) >= 2 * SHOWN:
                    due = heapq.nsmallest(SHOWN, due)
        read_at = self._references.read_at()
        removed_files, removed_bytes = self._store.removed_amount()
        return StorageReport(
            stored=tuple(
                Stored(kind=kind, files=amount.files, bytes=amount.bytes) for kind, amount in self._all(amounts).items()
            ),
            free_bytes=self._upkeep.free(),
            keep_updates_days=None if policy.updates is None else policy.updates / DAY,
            keep_orphans_days=None if policy.orphans is None else policy.orphans / DAY,
            ledger_read_at=None if read_at is None else datetime.fromtimestamp(read_at, UTC),
            due_files=due_files,
            due_bytes=due_bytes,
            due=tuple(
                Due(
                    digest=facts.digest,
                    kind=facts.kind,
                    size=facts.size,
                    brought_at=datetime.fromtimestamp(facts.brought_at, UTC),
                )
                for _, _, facts in heapq.nsmallest(SHOWN, due)
            ),
            removed_files=removed_files,
            removed_bytes=removed_bytes,
        )

    def sweep(self) -> int:
        """Read the ledger and delete what the policy says; how many files that were. Raises `Problem` where the ledger
        cannot be read: then nothing is deleted."""
        now = self._clock()
        self._catch_up(now)
        reading = self._references.reading(now)
        going = [facts for facts in self._references.facts() if goes(facts, self._policy, reading, now)]
        removed = Removed(now, Removal.POLICY)
        count = freed = 0
        for facts in going:
            if self._store.remove(facts.digest, removed, facts.brought_at) and self._delete(
                facts.digest, facts.brought_at
            ):
                count, freed = count + 1, freed + facts.size
                self._metrics.removed.labels(facts.kind.value).inc()
                _log.info("artifact removed by policy", artifact=facts.digest, kind=facts.kind.value, bytes=facts.size)
        for digest, brought_at in self._store.removed_by_policy(CLOCKS_SECONDS):
            if self._files.exists(digest):  # the process was killed between record and file
                self._delete(digest, brought_at)
        if count:
            _log.info("storage swept", files=count, bytes=freed)
        return count

    async def sweep_for_ever(self, seconds: float) -> None:
        """`sweep` now and then."""
        while True:
            pause = seconds
            try:
                await anyio.to_thread.run_sync(self.sweep)
            except Exception as error:  # whoever is away now is there next time
                _log.warning("storage not swept", error=type(error).__name__)
                pause = min(seconds, _RETRY_SECONDS)
            await anyio.sleep(pause)

    def stored(self) -> Mapping[str, tuple[int, int]]:
        """Bytes and files by kind, as of five minutes ago at most."""
        with self._counting:
            now = time.monotonic()
            if self._counted is None or now - self._counted[0] > _FRESH_SECONDS:
                amounts: dict[StoredKind, Amount] = {}
                for facts in self._references.facts():
                    _add(amounts, facts)
                counts = {kind.value: (amount.bytes, amount.files) for kind, amount in self._all(amounts).items()}
                self._counted = now, counts
            return self._counted[1]

    def _catch_up(self, now: float) -> None:
        with self._reading:
            self._index.catch_up(now)

    def _delete(self, digest: str, brought_at: float) -> bool:
        """Delete the file of an artifact that is marked as removed, unless somebody brings it in this moment."""
        gone = self._upkeep.delete(digest, lambda: self._store.still_removed(digest, brought_at))
        if not gone:
            self._store.keep(digest)
        return gone

    def _all(self, amounts: Mapping[StoredKind, Amount]) -> dict[StoredKind, Amount]:
        found = {kind: amounts.get(kind, Amount(0, 0)) for kind in StoredKind}
        return {
            **found,
            StoredKind.UNFINISHED: self._upkeep.unfinished(),
            StoredKind.QUARANTINED: self._upkeep.quarantined(),
        }


def _add(amounts: dict[StoredKind, Amount], facts: Facts) -> None:
    before = amounts.get(facts.kind, Amount(0, 0))
    amounts[facts.kind] = Amount(before.files + 1, before.bytes + facts.size)

"""Partial sums made ahead while a round still takes updates, by any worker that serves their queue.

They are an optimisation: a round folds the updates of a sum that is not there itself, and comes to the same bytes.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path

from celery import Celery
from concilia_kit import logs
from concilia_kit.digests import Digest
from concilia_kit.problems import Problem
from concilia_kit.sealing import NO_KEYS, Keyring, SealingKeyUnknown
from concilia_kit.storedfile import digest_of
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import LedgerRound
from kombu.exceptions import OperationalError
from pydantic import Field

from concilia_aggregator import partials
from concilia_aggregator.artifacts import Artifacts
from concilia_aggregator.partials import GROUP, Member, Partial

TASK = "concilia.partial"
QUEUE = "aggregator.partials"

_KEPT = 10_000  # sums that were asked for, remembered so as not to be asked for again
_STALE_SECONDS = 7 * 86400.0
_LEAST_SECONDS = 60.0  # a sum may be asked for, however near the deadline is

_log = logs.get(__name__)


class SumTask(Wire):
    """Add these updates of a base up."""

    base: Digest
    updates: tuple[tuple[Digest, int], ...] = Field(min_length=1, max_length=1000)

    def members(self) -> list[Member]:
        """The updates."""
        return [Member(digest, samples) for digest, samples in self.updates]


@dataclass(frozen=True)
class Ahead:
    """A round's sums that are there, and the updates in them, which need not be folded again."""

    sums: tuple[Partial, ...]
    members: frozenset[Member]


class Summing:
    """Asks for sums and finds them, in a folder that all who make them share."""

    def __init__(self, broker: Celery, folder: Path, keys: Keyring = NO_KEYS) -> None:
        self._broker = broker
        self._keys = keys
        self._folder = folder
        self._asked: OrderedDict[str, None] = OrderedDict()

    def ask(self, recorded: LedgerRound) -> None:
        """Have every full group of a screened round's accepted updates added up, each once."""
        for group in _groups(recorded):
            name = partials.key(recorded.base, group)
            if name in self._asked:
                continue
            self._asked[name] = None
            while len(self._asked) > _KEPT:
                self._asked.popitem(last=False)
            task = SumTask(base=recorded.base, updates=tuple(group))
            seconds = max(recorded.deadline - time.time(), _LEAST_SECONDS)
            try:
                self._broker.send_task(
                    TASK, kwargs={"task": task.model_dump(mode="json")}, queue=QUEUE, expires=seconds, retry=False
                )
            except OperationalError as error:
                _log.warning("partial sum not asked for", name=name, error=str(error))

    def ahead(self, recorded: LedgerRound) -> Ahead:
        """The sums of a screened round that are there; one that cannot be read is as if it were not."""
        found: list[Partial] = []
        members: set[Member] = set()
        for group in _groups(recorded):
            name = partials.key(recorded.base, group)
            if not partials.is_there(self._folder, name):
                continue
            try:
                partial = Partial.open(self._folder, name, self._keys)
            except (MalformedFile, SealingKeyUnknown, OSError) as error:
                _log.warning("partial sum left aside", name=name, error=str(error))
                continue
            if partial.samples == sum(each.samples for each in group):
                found.append(partial)
                members |= set(group)
        return Ahead(tuple(found), frozenset(members))

    def release(self, recorded: LedgerRound) -> None:
        """Remove a closed round's sums, and what came too late for the rounds of long ago."""
        for group in _groups(recorded):
            partials.remove(self._folder, partials.key(recorded.base, group))
        partials.sweep(self._folder, time.time() - _STALE_SECONDS)


def _groups(recorded: LedgerRound) -> list[list[Member]]:
    """Accepted updates in the order of the ledger, which only adds to its end, by full groups without repetition."""
    members = [Member(item.update.digest, item.update.samples) for item in recorded.accepted()]
    times = Counter(members)  # two hospitals may have sent one file for as many samples
    groups = [members[start : start + GROUP] for start in range(0, len(members) - GROUP + 1, GROUP)]
    return [group for group in groups if all(times[each] == 1 for each in group)]


def register(worker: Celery, artifacts: Artifacts, folder: Path) -> None:
    """Add the task that makes sums to a worker."""

    @worker.task(name=TASK, shared=False, ignore_result=True)  # type: ignore[untyped-decorator]
    def partial(task: dict[str, object]) -> None:
        make(SumTask.model_validate(task), artifacts, folder)


def make(task: SumTask, artifacts: Artifacts, folder: Path) -> bool:
    """Make a sum, unless it is there; whether it is now. Whoever asked can do without it, so nothing is raised."""
    members = task.members()
    name = partials.key(task.base, members)
    if partials.is_there(folder, name):
        return True
    began = time.monotonic()
    try:
        files = [_sound(artifacts, each.digest) for each in members]
        partials.make(
            files, [each.samples for each in members], _sound(artifacts, task.base), folder, name, artifacts.keys
        )
    except (Problem, OSError, ValueError) as error:
        _log.warning("partial sum not made", name=name, error=f"{type(error).__name__}: {error}")
        return False
    finally:
        for digest in {task.base, *(each.digest for each in members)}:
            artifacts.release(digest)
    _log.info("partial sum made", name=name, updates=len(members), seconds=round(time.monotonic() - began, 3))
    return True


def _sound(artifacts: Artifacts, digest: str) -> TensorFile:
    """An artifact whose bytes are those of its digest: what is wrong in a sum nobody sees before a verification."""
    path = artifacts.fetch(digest)
    if digest_of(path, artifacts.keys) != digest:
        raise ValueError(f"the bytes of {digest[:12]}… are others")
    return TensorFile.open(path, artifacts.keys)

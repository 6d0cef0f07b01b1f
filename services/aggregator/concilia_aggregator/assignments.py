"""What each hospital is asked for now, told to those who ask: over HTTPS alone, or to see that no message was lost.

A queue carries a task once; a message may be lost with the broker, or never reach a network that lets out HTTPS and
nothing else. Here a task stands as long as it is to be done, read from the jobs' states: whoever asks again is told
again, and what is done twice counts once. Who has nothing to do may leave its question open until there is something
(`watching`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from concilia_kit import digests
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.masking import Survivors
from concilia_kit.wire.training import Assignment, EvaluateTask, UnmaskTask, name_of

from concilia_aggregator import dispatch
from concilia_aggregator.errors import JobNotFound
from concilia_aggregator.masking.rooms import Kind
from concilia_aggregator.orders import Orders
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import Store, spec_of, state_of
from concilia_aggregator.watching import Watch


class Told(NamedTuple):
    """What one hospital is asked for, and a tag that is another whenever that is."""

    tasks: tuple[Assignment, ...]
    tag: str


class Assignments:
    """What hospitals are asked for, by the database. Of one event loop, but for `of`."""

    def __init__(self, store: Store, orders: Orders, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._orders = orders
        self._clock = clock
        self._jobs: dict[str, tuple[int, JobSpec, JobState, Survivors | None, dispatch.ClassCounts]] = {}
        self._watch = Watch(self._versions)

    def of(self, hospital: str) -> Told:
        """What one hospital is asked for now, job by job. Raises `Problem` where nobody says yet whom it is signed
        for."""
        return self._of(hospital, self._versions())

    async def news(self, hospital: str, known: str, seconds: float) -> Told:
        """The same, once its tag is not the one that is known, or after so many seconds."""
        return await self._watch.news(lambda seen: self._of(hospital, seen), lambda told: told.tag == known, seconds)

    def _versions(self) -> dict[str, int]:
        """The version of each job that has not ended; no other is remembered."""
        versions = self._store.versions()
        for ended in self._jobs.keys() - versions.keys():
            self._jobs.pop(ended, None)
        return versions

    def _of(self, hospital: str, versions: dict[str, int]) -> Told:
        found = [self._assigned(job, version, hospital) for job, version in sorted(versions.items())]
        tasks = tuple(each for each in found if each is not None)
        return Told(tasks, digests.of_json([each.model_dump(mode="json") for each in tasks]))

    def _assigned(self, job: str, version: int, hospital: str) -> Assignment | None:
        kept = self._jobs.get(job)
        if kept is None or kept[0] != version:
            try:
                row = self._store.job(job)
            except JobNotFound:
                return None
            state = state_of(row)
            is_settled = state.phase is Phase.UNMASKING
            survivors = self._store.masking.survivors(job, state.round) if is_settled else None
            counts = self._store.class_counts(job, spec_of(row)) if state.phase is Phase.EVALUATING else None
            kept = row.version, spec_of(row), state, survivors, counts
            self._jobs[job] = kept
        _, spec, state, survivors, counts = kept
        ability = frozenset() if spec.encoding.plain else self._store.ability(hospital)
        found = dispatch.assigned(job, spec, state, hospital, ability, self._clock(), survivors, counts)
        if found is None:
            return None
        if hospital not in state.cohort and not self._store.is_of(hospital, spec.classification):
            return None
        if isinstance(found, EvaluateTask) and self._store.has_reported(job, found.round, hospital):
            return None
        if isinstance(found, UnmaskTask) and self._store.masking.message(Kind.REVEAL, job, found.round, hospital):
            return None
        name = name_of(found)
        return Assignment(name=name, task=found, signature=self._orders.sign(name, found.model_dump(mode="json")))

"""A hospital's account of what differential privacy has cost its lesions, and the budget that it does not go past,
whatever the consortium asks.

The account is a file on the hospital's own disk, a line a training: it is on the disk before the training's update
leaves, and no restart forgets it. A training that is repeated, since a crash took what it made, counts again; the same
update sent again does not. The budget is looked at twice: before a training begins, and when it is put down, so that
two trainings at a time do not go past it together. Who takes the file away, or a line of it, begins anew: that is the
hospital's own affair, and nobody else's.

Where the aggregator adds the noise, what a round costs is what it costs against whoever sees models alone. A hospital
says whether that is enough for it; without its word, its budget is for noise of its own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from concilia_kit import logs
from concilia_kit.digests import Digest, JobId
from concilia_kit.wire.privacy import Spent
from concilia_kit.wire.training import TrainTask
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from concilia_client_node.errors import Refused
from concilia_client_node.flushing import flush_folder
from concilia_client_node.locks import FileLock
from concilia_client_node.sampling import Sampled, central, planned
from concilia_client_node.trainer import Carried, Check, Outcome, Tensors, Trainer

_LOCK_SECONDS = 0.05
_log = logs.get(__name__)


@dataclass(frozen=True)
class Budget:
    """Most that may be spent on a job, and on all together, in epsilon at `delta`; None: as much as is asked for."""

    per_job: float | None = None
    total: float | None = None
    delta: float = 1e-5
    central: bool = False
    """Whether noise that the aggregator adds counts: it protects from others, and not from the aggregator."""

    @property
    def is_set(self) -> bool:
        """Whether there is any."""
        return self.per_job is not None or self.total is not None


class Entry(BaseModel):
    """A training: the update that it made, and what it did to every lesion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    job: JobId
    round: int
    update: Digest
    sampled: Sampled
    central: bool = False  # the noise was the aggregator's


class Account:
    """The account at `path`, which processes of one hospital may share, and its budget."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self._path, self._budget = path, budget

    def see_job(self, task: TrainTask) -> None:
        """Raises `Refused` where there is a budget, and the job is of a kind that knows none, or whose noise is not
        enough for this hospital."""
        if not self._budget.is_set or task.privacy is not None:
            return
        if task.central is None:
            raise Refused("this hospital trains with differential privacy only, and the job asks for none")
        if not self._budget.central:
            raise Refused(
                "this hospital trains with noise of its own only, and the job leaves it to the aggregator, which sees "
                "updates without"
            )

    def see_task(self, task: TrainTask, trainer: Trainer) -> None:
        """Raises `Refused` where a task goes past the budget as far as can be told before anything is decoded, or knows
        none; `OSError`."""
        self.see_job(task)
        if task.privacy is not None:
            lesions = trainer.extent(task.local.model_copy(update={"max_images": None})).lesions
            if lesions:
                self.see(task, planned(task.local, task.privacy, lesions))
        elif task.central is not None:
            self.see(task, central(task.central))

    def see(self, task: TrainTask, sampled: Sampled) -> None:
        """Raises `Refused` where a training would go past the budget, `OSError` where the account cannot be read."""
        self._see(self.entries(), task, sampled)

    def train(
        self,
        trainer: Trainer,
        task: TrainTask,
        base: Path,
        seed: int,
        progress: Callable[[float], None],
        check: Check,
        carried: Carried,
        trunk: Path | None,
    ) -> tuple[Outcome, Tensors]:
        """As `Trainer.train`, or with differential privacy where the job asks for it and the budget lets it. Raises
        `Refused` before anything is trained.

        Where the aggregator is to add the noise, what was measured on training pictures is not told.
        """
        self.see_job(task)
        if task.privacy is not None:
            allow = partial(self.see, task)
            return trainer.train_privately(
                task.architecture, base, task.local, task.privacy, allow, progress, check, carried, trunk
            )
        done = None if task.central is None else central(task.central)
        if done is not None:
            self.see(task, done)
        outcome, tensors = trainer.train(task.architecture, base, task.local, seed, progress, check, carried, trunk)
        if done is not None:
            outcome = replace(outcome, loss=None, accuracy=None, first_loss=None, class_counts=None, sampled=done)
        return outcome, tensors

    def spend(self, task: TrainTask, outcome: Outcome, update: Digest) -> Spent | None:
        """Put a training down that made an update, before that leaves; what it cost, None where it knows no cost.

        Raises `Refused` where it goes past the budget after all, and `OSError`.
        """
        if (delta := _delta(task)) is None:
            return None
        if (sampled := outcome.sampled) is None:
            raise Refused("the job asks for differential privacy, and the training was without")
        with self._alone():
            before = self.entries()
            if all(entry.update != update for entry in before):
                self._see(before, task, sampled)
                entry = Entry(
                    at=datetime.now(UTC),
                    job=task.job,
                    round=task.round,
                    update=update,
                    sampled=sampled,
                    central=_is_central(task),
                )
                self._append(entry)
                before.append(entry)
        cost = _epsilon(before, delta, task.job)
        _log.info("privacy spent", job=task.job, round=task.round, epsilon=cost, delta=delta)
        return Spent(epsilon=cost, delta=delta, central=_is_central(task), **sampled.model_dump())

    def entries(self) -> list[Entry]:
        """All that was put down. A line that a crash cut off is none: its update did not leave. Raises `OSError` where
        another one cannot be read: an account that has lost something is none."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            return [Entry.model_validate_json(line) for line in content.split(b"\n")[:-1]]
        except ValidationError as error:
            raise OSError(0, "the account of privacy cannot be read") from error

    def _see(self, before: list[Entry], task: TrainTask, sampled: Sampled) -> None:
        asked = _delta(task)
        assert asked is not None, "looked at"
        budget, delta = self._budget, self._budget.delta
        if not math.isfinite(_epsilon(before, asked, task.job, sampled)):
            raise Refused("the job's noise is so little that there is no ε to be told of it")
        if budget.per_job is not None and (cost := _epsilon(before, delta, task.job, sampled)) > budget.per_job:
            raise Refused(
                f"this round would bring the job to ε = {cost:.4g} at δ = {delta:g}, and this hospital spends "
                f"{budget.per_job:g} on a job"
            )
        if budget.total is not None and (cost := _epsilon(before, delta, None, sampled)) > budget.total:
            raise Refused(
                f"this round would bring all jobs together to ε = {cost:.4g} at δ = {delta:g}, and this hospital "
                f"spends {budget.total:g} in all"
            )

    def _append(self, entry: Entry) -> None:
        is_new = not self._path.exists()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            whole = file.read()
            file.seek(whole.rfind(b"\n") + 1)
            file.truncate()  # what a crash cut off
            file.write(entry.model_dump_json(exclude_defaults=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            flush_folder(self._path.parent)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self._path.with_suffix(".lock"))
        while not lock.take():
            time.sleep(_LOCK_SECONDS)
        try:
            yield
        finally:
            lock.release()


def _is_central(task: TrainTask) -> bool:
    return task.privacy is None and task.central is not None


def _delta(task: TrainTask) -> float | None:
    """What a job tells ε at; None of one without differential privacy."""
    asked = task.privacy or task.central
    return None if asked is None else asked.delta


def _epsilon(entries: list[Entry], delta: float, job: JobId | None, sampled: Sampled | None = None) -> float:
    """Of a job, or of all, with what is about to be done."""
    # It brings SciPy, which costs a second and memory where no job asks for it.
    from concilia_client_node import accounting

    done = [entry.sampled for entry in entries if job is None or entry.job == job]
    return accounting.epsilon(done if sampled is None else [*done, sampled], delta)

"""What a hospital's node works with, and how it says how far it is."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from concilia_kit import logs
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.wire.chain import LedgerRound
from concilia_kit.wire.progress import Progress, Stage
from concilia_kit.wire.training import EvaluateTask, Task, TrainTask, UnmaskTask
from eth_account.signers.local import LocalAccount

from concilia_client_node import fetching
from concilia_client_node.budget import Account, Budget
from concilia_client_node.consortium import Consortium
from concilia_client_node.errors import Over, Stopped
from concilia_client_node.floors import NONE, Floors
from concilia_client_node.metrics import EVALUATE, TRAIN, UNMASK, NodeMetrics
from concilia_client_node.presence import ProgressReporter
from concilia_client_node.store import NodeFolder
from concilia_client_node.trainer import Trainer

UNBOUNDED = Budget()
_log = logs.get(__name__)
_REMEMBERED = 256  # ended tasks
_LEVELS = {Stage.REFUSED: 30, Stage.FAILED: 40}


@dataclass(frozen=True)
class Means:
    """One hospital's key, services, pictures and folder. `stop` is set when the process is to end; work then raises
    `Stopped`."""

    account: LocalAccount
    consortium: Consortium
    trainer: Trainer
    folder: NodeFolder
    reporter: ProgressReporter
    stop: threading.Event
    classification: Classification = LESIONS
    clock: Callable[[], float] = time.time
    metrics: NodeMetrics = field(default_factory=NodeMetrics)
    floors: Floors = NONE
    budget: Budget = UNBOUNDED
    _ended: deque[Task] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def address(self) -> str:
        """The hospital's."""
        return self.account.address

    @property
    def spending(self) -> Account:
        """The hospital's account of what differential privacy costs, with its budget."""
        return Account(self.folder.account, self.budget)

    def has_ended(self, task: Task) -> bool:
        """Whether this process carried a task to its end, be it a good one or not, and lately."""
        return task in self._ended

    def round(self, job: str, number: int) -> LedgerRound:
        """A round as the ledger has it, with this hospital's update alone. Raises `Problem`."""
        return self.consortium.round(job, number, self.address)

    def fetch(self, task: Task, digest: str, check: Callable[[], None]) -> fetching.Fetched:
        """See `fetching.artifact`."""
        return fetching.artifact(self.consortium, self.folder, digest, check, self._downloading(task))

    def fetch_model(self, task: Task, digest: str, check: Callable[[], None]) -> fetching.Fetched:
        """See `fetching.model`."""
        return fetching.model(self.consortium, self.folder, digest, check, self._downloading(task))

    def check(self) -> None:
        """Raises `Stopped` where the process is to end."""
        if self.stop.is_set():
            raise Stopped("the node is shutting down")

    def check_until(self, deadline: int) -> Callable[[], None]:
        """A `check` that raises `Over` after a deadline, too."""

        def check() -> None:
            self.check()
            if self.clock() > deadline:
                raise Over("the task's deadline passed during the work")

        return check

    def tell(self, task: Task, stage: Stage, fraction: float, detail: str = "") -> None:
        """Say how far a task is. Returns at once."""
        self.reporter.report(task.job, task.round, Progress(stage=stage, fraction=fraction, detail=detail[:500]))

    def end(self, task: Task, stage: Stage, detail: str) -> None:
        """Say how a task ended, and remember that it did."""
        _log.log(_LEVELS.get(stage, 20), stage.value, job=task.job, round=task.round, detail=detail)
        self._ended.append(task)
        self.tell(task, stage, 1.0, detail)
        self.count(task, stage.value)

    def count(self, task: Task, outcome: str) -> None:
        """Count an attempt at a task."""
        self.metrics.tasks.labels(_NAMES[type(task)], outcome).inc()

    def _downloading(self, task: Task) -> Callable[[], None]:
        return partial(self.tell, task, Stage.DOWNLOADING, 0.0)


_NAMES: dict[type[Task], str] = {TrainTask: TRAIN, EvaluateTask: EVALUATE, UnmaskTask: UNMASK}

"""The life of a task at a hospital: who asks for it, what becomes of it, and how that is told.

A task is worked at only where a coordinator signed it, by the roles that the ledger has. What it is to be done is in
`updating`, `evaluating` and `unmasking`. What the ledger refuses, and what the hospital does, is not tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import EvaluateTask, Task, TrainTask, UnmaskTask

from concilia_client_node import orders
from concilia_client_node.consortium import BASE_CHANGED, transient
from concilia_client_node.errors import NodeError, Stopped
from concilia_client_node.evaluating import evaluate
from concilia_client_node.means import Means
from concilia_client_node.metrics import RETRIED, STOPPED
from concilia_client_node.unmasking import unmask
from concilia_client_node.updating import Updating

_log = logs.get(__name__)


@dataclass(frozen=True)
class Hospital(Means):
    """One hospital's node."""

    def look_after(self, task: Task) -> bool:
        """See to it that an update is still in the store whose round is open; whether it had to be brought again: a
        disk may have changed it since. Raises `Problem`, `OSError`."""
        if not isinstance(task, TrainTask):
            return False
        kept, path = self.folder.trained(task.job, task.round), self.folder.update(task.job, task.round)
        if kept is None or not path.exists() or self.folder.metrics(task.job, task.round) is None:
            return False
        if self.consortium.has(kept.digest):
            return False
        self.consortium.store(kept.digest, path, self.check)
        _log.warning("update brought again", job=task.job, round=task.round, artifact=kept.digest)
        return True

    def give_up(self, task: Task, problem: Problem) -> None:
        """No other try is worth it."""
        self.end(task, Stage.FAILED, f"given up: {problem.problem_code}: {problem.detail}")

    def work(self, task: Task, signature: str) -> None:
        """Carry a task out that a coordinator signed; of a training whose work is late, at once the one that it goes
        into. Raises `Stopped`, and a `Problem` that is worth another try."""
        if isinstance(task, EvaluateTask):
            self._carry_out(task, lambda: evaluate(self, task), signature)
            return
        if isinstance(task, UnmaskTask):
            self._carry_out(task, lambda: unmask(self, task), signature)
            return
        if task.asynchronous and self.has_ended(task):
            return  # with late work, before its message came
        then: list[TrainTask] = []
        updating = Updating(self)
        self._carry_out(task, lambda: updating.train_alone(task, then), signature)
        while then:
            later = then.pop()
            try:
                self._carry_out(later, partial(updating.train_alone, later, then))
            except Problem as problem:  # it comes by itself, too
                _log.warning("late work waits", job=later.job, round=later.round, code=problem.problem_code)

    def _carry_out(self, task: Task, work: Callable[[], None], signature: str | None = None) -> None:
        """Do what a task asks for. One without a signature is this node's own, of a round that is open."""
        try:
            if signature is not None:
                orders.see_who_asks(self.consortium, task, signature)
            orders.see_what_is_told_apart(task, self.classification)
            work()
        except Stopped:
            self.count(task, STOPPED)
            raise
        except NodeError as error:
            self.end(task, Stage.REFUSED, str(error))
        except Problem as problem:
            if transient(problem):
                self.count(task, RETRIED)
                if problem.problem_code == BASE_CHANGED:
                    self.tell(task, Stage.DOWNLOADING, 0.0, f"refused: {problem.detail}")
                raise
            self.end(task, Stage.REFUSED, f"{problem.problem_code}: {problem.detail}")
        except OSError as error:
            self.end(task, Stage.FAILED, f"the node's disk: {error.strerror}")
        except Exception as error:
            _log.exception("task failed", job=task.job, round=task.round)
            self.end(task, Stage.FAILED, f"unexpected {type(error).__name__}; the node's log has it")

"""Late work: a training of an asynchronous job that ended when its round was over.

It is not thrown away. What it changed of the model that it began with is put onto the base of the round that is open
now, and submitted there, with the rounds in between as its staleness. Where no round is open, it stays where it is: the
next task of the job takes it up, so that a crash or a restart costs nothing.

Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022), algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from concilia_kit import logs
from concilia_kit.encodings import Reader, Written, reader
from concilia_kit.normalisation import STATISTICS
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import LedgerRound, RoundStatus
from concilia_kit.wire.encoding import Encoded
from concilia_kit.wire.training import MAX_STALENESS, TrainTask

from concilia_client_node.consortium import Consortium
from concilia_client_node.fetching import Fetched
from concilia_client_node.store import NodeFolder, Trained

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Late:
    """A finished training of round `number` that no round took; `staleness` is what it has in the round asked about."""

    number: int
    trained: Trained
    staleness: int

    def put_onto(self, folder: NodeFolder, task: TrainTask) -> dict[str, npt.NDArray[Any]]:
        """The update's tensors for a task's round; both base models are in the folder. Raises `KeyError`,
        `MalformedFile`, `OSError`."""
        base = TensorFile.open(folder.base(self.trained.base))
        update = TensorFile.open(folder.update(task.job, self.number))
        return rebase(reader(update, base), base, TensorFile.open(folder.base(task.base)))

    def record(self, task: TrainTask, written: Written, encoded: Encoded | None, moved: Sequence[Fetched]) -> Trained:
        """What is known of the update that was written for a task's round. `moved`: downloads for it."""
        _log.info("late work taken up", job=task.job, round=task.round, made_for=task.round - self.staleness)
        return self.trained.model_copy(
            update={
                "base": task.base,
                "digest": written.digest,
                "size": written.size,
                "encoded": encoded,
                "staleness": self.staleness,
                "seconds_download": self.trained.seconds_download + sum(each.seconds for each in moved),
                "bytes_download": self.trained.bytes_download + sum(each.bytes for each in moved),
            }
        )


def taken(found: LedgerRound, hospital: str) -> bool:
    """Whether a round is done with a hospital's update: it counted, or was rejected. What was given up with its round
    may be told again."""
    ours = [item for item in found.updates if item.update.hospital == hospital]
    return any(item.reason is not None or found.status is not RoundStatus.ABORTED for item in ours)


def find(folder: NodeFolder, task: TrainTask, round_of: Callable[[int], LedgerRound], hospital: str) -> Late | None:
    """The last training before a task's round, where no round took it and it is not too late. `round_of` tells what the
    ledger has of a round of the job. Raises `Problem` where it does not answer.

    Only the last: an earlier one was carried into it, or lost to it.
    """
    number = folder.last_trained(task.job, task.round - 1)
    trained = None if number is None else folder.trained(task.job, number)
    if number is None or trained is None or not folder.update(task.job, number).exists():
        return None
    found = round_of(number)
    if found.status is RoundStatus.OPEN or taken(found, hospital):
        return None
    staleness = trained.staleness + task.round - number
    if staleness > MAX_STALENESS:
        _log.warning("late work dropped", job=task.job, round=number, staleness=staleness)
        return None
    return Late(number, trained, staleness)


def rebase(update: Reader, base: TensorFile, onto: TensorFile) -> dict[str, npt.NDArray[Any]]:
    """An update's tensors as if its training had begun with another model: `onto + (update - base)`, rounded once.

    Statistics and counters stay as they were trained. All three have the same names, shapes and dtypes. Raises
    `KeyError`, `MalformedFile`.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, spec in update.tensors.items():
        made = update.block(name, 0, spec.size)
        # Statistics are estimates and no steps: a difference put onto another base could make a variance negative,
        # where a mean of estimates is one.
        if np.issubdtype(spec.dtype, np.floating) and not name.endswith(STATISTICS):
            step = made.astype(np.float64) - base.flat(name)
            made = (onto.flat(name) + step).astype(spec.dtype)
        tensors[name] = made.reshape(spec.shape)
    return tensors


def following(consortium: Consortium, hospital: str, task: TrainTask) -> TrainTask | None:
    """The later round of a task's job that its hospital is asked for now; None where there is none, or nobody answers:
    it is asked for in any case."""
    try:
        asked = consortium.tasks(hospital)
    except (Problem, ValueError) as error:
        _log.debug("later round not looked for", error=type(error).__name__)
        return None
    tasks = () if asked is None else (each.task for each in asked.tasks)
    later = [each for each in tasks if isinstance(each, TrainTask) and each.job == task.job and each.round > task.round]
    return later[0] if later else None

"""Late work of an asynchronous job: put onto a later round's base, told with its staleness, never made twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from concilia_client_node import consortium as services
from concilia_client_node import late
from concilia_client_node.errors import Stopped
from concilia_client_node.presence import ProgressReporter
from concilia_client_node.service import Hospital
from concilia_client_node.store import NodeFolder
from concilia_client_node.trainer import NOTHING, Carried, Check, Outcome, Tensors
from concilia_kit import digests, encodings, tensorfile
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import Reason, RoundStatus, UpdateSubmission
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import MAX_STALENESS, TRAIN_TASK, Architecture, Assignment, LocalTraining, TrainTask
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.unit.client_node.hospitals import Untrained, services_of

JOB = "ef" * 32
ACCOUNT: LocalAccount = Account.from_key("0x" + 63 * "0" + "4")
STEP = np.float32(0.125)
Model = dict[str, npt.NDArray[Any]]


@dataclass
class Pace(Untrained):
    """A trainer that adds `STEP` to every weight, and during which `meanwhile` happens, once."""

    trained: int = 0
    meanwhile: list[Callable[[], None]] = field(default_factory=list)

    def train(
        self,
        architecture: Architecture,
        base: Path,
        local: LocalTraining,
        seed: int,
        progress: Callable[[float], None],
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
    ) -> tuple[Outcome, Tensors]:
        file = TensorFile.open(base)
        self.trained += 1
        while self.meanwhile:
            self.meanwhile.pop(0)()
        check()
        made = {name: np.array(file.tensor(name)) for name in file}
        variance = np.full_like(made["bn.running_var"], 0.25)
        return Outcome(0.5, 0.75, 40, 30), {
            "w": made["w"] + STEP,
            "bn.running_var": variance,
            "n": made["n"] + 3,
        }


def model(seed: int, variance: float = 1.0) -> Model:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(0, 1, (40, 50)).astype(np.float32),
        "bn.running_var": np.full(40, variance, np.float32),
        "n": np.array(10 * seed, np.int64),
    }


class World:
    """One hospital and the rounds of one job; each round's base is that number's `model`."""

    def __init__(self, consortium: Any, folder: Path, stack: contextlib.ExitStack) -> None:
        self.consortium, self._folder, self._stack = consortium, folder, stack
        self.trainer = Pace()
        self.hospital = self.start()

    def start(self) -> Hospital:
        """A process of the hospital, with its folder as it is."""
        folder = NodeFolder(self._folder / "node")
        folder.open()
        theirs = services_of(self.consortium, ACCOUNT, self._stack)
        reporter = ProgressReporter(theirs.progress)
        reporter.start()
        self._stack.callback(reporter.close, 10)
        return Hospital(ACCOUNT, theirs, self.trainer, folder, reporter, threading.Event())

    def base(self, number: int) -> str:
        path = self._folder / "base"
        # What is 1 at first is less later: a difference of variances would go below zero.
        tensorfile.write(path, model(number, 1.0 / number**3))
        digest: str = self.consortium.keep(path.read_bytes())
        return digest

    def open(self, number: int, *, asked: bool = True, merkle: bool = False, **changes: Any) -> TrainTask:
        """Open a round, which the hospital is asked for."""
        base = self.base(number)
        self.consortium.open_round(JOB, number, base, merkle=merkle)
        task = TrainTask(
            job=JOB,
            round=number,
            architecture=Architecture.RESNET18,
            base=base,
            seed=1,
            deadline=2**40,
            local=LocalTraining(),
            asynchronous=True,
        ).model_copy(update=changes)
        told = Assignment(name=TRAIN_TASK, task=task, signature=self.consortium.sign(task)).model_dump(mode="json")
        self.consortium.assigned = [told] if asked else []
        return task

    def end(self, number: int, status: RoundStatus = RoundStatus.CLOSED, reason: Reason | None = None) -> None:
        found = self.consortium.rounds[JOB, number]
        updates = tuple(item.model_copy(update={"reason": reason}) for item in found.updates)
        self.consortium.rounds[JOB, number] = found.model_copy(update={"status": status, "updates": updates})
        self.consortium.assigned = []

    def submitted(self) -> UpdateSubmission:
        return UpdateSubmission.model_validate_json(self.consortium.submissions[-1])

    def sent(self) -> Model:
        """The model that the last submission stands for."""
        update = self.submitted().update
        for name, digest in (("u", update.digest), ("b", update.base)):
            (self._folder / name).write_bytes(self.consortium.artifacts[digest])
        reader = encodings.reader(TensorFile.open(self._folder / "u"), TensorFile.open(self._folder / "b"))
        return {name: reader.block(name, 0, spec.size).reshape(spec.shape) for name, spec in reader.tensors.items()}

    def ends(self) -> list[Stage]:
        assert self.hospital.reporter.flush(10)
        return [item.stage for item in self.consortium.progress if item.stage in {Stage.SUBMITTED, Stage.REFUSED}]


@pytest.fixture
def world(consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(services, "RETRY_SECONDS", 0.1)
    with contextlib.ExitStack() as stack:
        yield World(consortium, tmp_path, stack)


def test_a_training_in_time_says_nothing_of_staleness(world: World) -> None:
    world.consortium.ask(world.hospital, world.open(1))
    assert world.submitted().metrics.staleness == 0
    assert "staleness" not in world.submitted().metrics.model_dump(mode="json")
    assert np.array_equal(world.sent()["w"], model(1)["w"] + STEP)


@pytest.mark.parametrize("text", ["none", "float16+zstd"])
def test_a_late_training_goes_into_the_round_that_is_open(world: World, text: str) -> None:
    first = world.open(1, encoding=Encoding.parse(text))

    def meanwhile() -> None:
        world.end(1)
        world.open(2)
        world.end(2)
        world.open(3, encoding=Encoding.parse(text))

    world.trainer.meanwhile.append(meanwhile)
    world.consortium.ask(world.hospital, first)
    update, metrics = world.submitted().update, world.submitted().metrics
    assert (update.round, update.base, metrics.staleness) == (3, world.base(3), 2)
    assert update.metrics == digests.of_json(metrics.model_dump(mode="json"))
    assert (world.trainer.trained, metrics.images, metrics.epochs) == (1, 40, 1)
    # Nothing was uploaded for the round that was over.
    assert len(world.consortium.upload_lengths) == len(world.consortium.submissions) == 1
    sent = world.sent()
    assert encodings.staleness_of(TensorFile.open(world.hospital.folder.update(JOB, 3))) == 2
    exact = model(3)["w"].astype(np.float64) + ((model(1)["w"] + STEP).astype(np.float64) - model(1)["w"])
    if text == "none":
        assert np.array_equal(sent["w"], exact.astype(np.float32))
    else:
        assert np.abs(sent["w"] - exact).max() < 1e-3
    assert np.allclose(sent["bn.running_var"], 0.25, atol=1e-3)
    assert sent["n"] == 13
    assert world.ends() == [Stage.REFUSED, Stage.SUBMITTED]


def test_the_later_task_has_ended_with_it(world: World) -> None:
    first = world.open(1)
    tasks: list[TrainTask] = []

    def meanwhile() -> None:
        world.end(1)
        tasks.append(world.open(2))

    world.trainer.meanwhile.append(meanwhile)
    world.consortium.ask(world.hospital, first)
    assert world.hospital.has_ended(first)
    assert world.hospital.has_ended(tasks[0])
    world.consortium.ask(world.hospital, tasks[0])  # its message was in the queue
    assert (world.trainer.trained, len(world.consortium.submissions)) == (1, 1)
    world.end(2)
    world.consortium.ask(world.hospital, world.open(3))
    assert (world.trainer.trained, world.submitted().metrics.staleness) == (2, 0)


def test_where_no_round_is_open_it_waits_for_the_next_task(world: World) -> None:
    world.trainer.meanwhile.append(lambda: world.end(1))
    world.consortium.ask(world.hospital, world.open(1))
    assert world.consortium.submissions == []
    world.hospital = world.start()  # nor does it need the process that made it
    world.consortium.ask(world.hospital, world.open(2))
    assert (world.trainer.trained, world.submitted().update.round, world.submitted().metrics.staleness) == (1, 2, 1)


def test_a_deadline_that_passes_ends_no_training(world: World) -> None:
    task = world.open(1, deadline=1)
    world.consortium.ask(world.hospital, task)
    assert world.trainer.trained == 0  # nothing was begun that was over
    first = world.open(1, deadline=2**30)
    hospital = world.hospital
    now = [2.0**20]
    world.hospital = type(hospital)(
        hospital.account,
        hospital.consortium,
        hospital.trainer,
        hospital.folder,
        hospital.reporter,
        hospital.stop,
        clock=lambda: now[0],
    )

    def meanwhile() -> None:
        now[0] = 2.0**31
        world.end(1, RoundStatus.ABORTED)
        found = world.open(2)
        world.consortium.rounds[JOB, 2] = world.consortium.rounds[JOB, 2].model_copy(
            update={"deadline": found.deadline}
        )

    world.consortium.rounds[JOB, 1] = world.consortium.rounds[JOB, 1].model_copy(update={"deadline": 2**30})
    world.trainer.meanwhile.append(meanwhile)
    world.consortium.ask(world.hospital, first)
    assert (world.submitted().update.round, world.submitted().metrics.staleness) == (2, 1)


def test_it_is_late_again_and_its_staleness_grows(world: World) -> None:
    world.trainer.meanwhile.append(lambda: world.end(1))
    world.consortium.ask(world.hospital, world.open(1))
    second = world.open(2)
    world.consortium.failures["submit"].append(Problem("closed", status=409, code="round_not_open"))
    world.consortium.ask(world.hospital, second)
    world.end(2)
    world.consortium.ask(world.hospital, world.open(4))
    assert (world.trainer.trained, world.submitted().metrics.staleness) == (1, 3)
    exact = model(4)["w"].astype(np.float64) + ((model(1)["w"] + STEP).astype(np.float64) - model(1)["w"])
    assert np.abs(world.sent()["w"] - exact).max() < 1e-6


@pytest.mark.parametrize("broken", ["get", "upload", "append", "submit", "contract"])
def test_a_crash_in_between_makes_nothing_again(world: World, broken: str) -> None:
    first = world.open(1)

    def meanwhile() -> None:
        world.end(1)
        world.open(2)
        world.consortium.failures[broken] += [Unavailable("away")] * 9

    world.trainer.meanwhile.append(meanwhile)
    world.consortium.ask(world.hospital, first)  # which has ended; the later one has not
    assert not world.consortium.rounds[JOB, 2].updates
    assert len(world.hospital._ended) == 1
    world.consortium.failures[broken].clear()
    world.hospital = world.start()
    kept = (world.hospital.folder.update(JOB, 2)).exists() and world.hospital.folder.trained(JOB, 2)
    world.consortium.ask(world.hospital, first)  # from the queue, which has both
    world.consortium.ask(world.hospital, TrainTask.model_validate(world.consortium.assigned[0]["task"]))
    assert (world.trainer.trained, world.submitted().update.round, world.submitted().metrics.staleness) == (1, 2, 1)
    assert len(world.consortium.rounds[JOB, 2].updates) == 1
    if kept:
        assert world.submitted().update.digest == kept.digest


def test_an_answer_that_was_lost_is_followed_by_the_same_bytes(world: World) -> None:
    world.trainer.meanwhile.append(lambda: world.end(1))
    world.consortium.ask(world.hospital, world.open(1))
    second = world.open(2)
    world.consortium.lose_receipts = 99
    with pytest.raises(Problem):
        world.consortium.ask(world.hospital, second)
    world.consortium.lose_receipts = 0
    world.consortium.ask(world.start(), second)
    assert len(set(world.consortium.submissions)) == 1
    assert len(world.consortium.rounds[JOB, 2].updates) == 1


def test_a_task_that_comes_again_when_a_later_round_has_its_work_has_none(world: World) -> None:
    first = world.open(1)
    world.trainer.meanwhile.append(lambda: world.end(1))
    world.consortium.ask(world.hospital, first)
    world.consortium.ask(world.hospital, world.open(2))
    world.end(2)
    third = world.open(3)
    world.hospital = world.start()
    world.consortium.ask(world.hospital, first)  # the process that had it was killed
    assert not world.hospital.has_ended(third)
    assert (world.trainer.trained, len(world.consortium.submissions)) == (1, 1)


@pytest.mark.parametrize("reason", [None, Reason.NORM_TOO_LARGE])
def test_what_a_round_took_is_not_told_twice(world: World, reason: Reason | None) -> None:
    first = world.open(1)
    world.consortium.ask(world.hospital, first)
    world.end(1, reason=reason)
    second = world.open(2)
    world.consortium.ask(world.hospital, first)  # came again
    world.consortium.ask(world.hospital, second)
    assert (world.trainer.trained, world.submitted().metrics.staleness) == (2, 0)


def test_what_was_given_up_with_its_round_is_told_in_the_next(world: World) -> None:
    world.consortium.ask(world.hospital, world.open(1))
    world.end(1, RoundStatus.ABORTED)
    world.consortium.ask(world.hospital, world.open(2))
    assert (world.trainer.trained, world.submitted().metrics.staleness) == (1, 1)
    world.end(2, RoundStatus.ABORTED, Reason.NON_FINITE)
    world.consortium.ask(world.hospital, world.open(3))
    assert (world.trainer.trained, world.submitted().metrics.staleness) == (2, 0)


def test_an_update_that_came_after_its_rounds_commitment_is_late(world: World) -> None:
    task = world.open(1, merkle=True)
    found = world.consortium.rounds[JOB, 1]
    world.consortium.rounds[JOB, 1] = found.model_copy(update={"root": "0" * 64})
    world.consortium.ask(world.hospital, task)
    world.end(1)
    world.consortium.ask(world.hospital, world.open(2, merkle=True))
    assert (world.trainer.trained, world.submitted().update.round, world.submitted().metrics.staleness) == (1, 2, 1)
    assert world.consortium.rounds[JOB, 2].collected == (ACCOUNT.address,)


@pytest.mark.parametrize(("number", "trained"), [(1 + MAX_STALENESS, 1), (2 + MAX_STALENESS, 2)])
def test_what_is_too_late_is_dropped_and_trained_anew(world: World, number: int, trained: int) -> None:
    world.trainer.meanwhile.append(lambda: world.end(1))
    world.consortium.ask(world.hospital, world.open(1))
    world.consortium.ask(world.hospital, world.open(number))
    assert world.trainer.trained == trained
    assert world.submitted().metrics.staleness == (MAX_STALENESS if trained == 1 else 0)


def test_an_old_base_that_nobody_has_costs_the_work_and_no_more(world: World) -> None:
    first = world.open(1)
    world.trainer.meanwhile.append(lambda: world.end(1))
    world.consortium.ask(world.hospital, first)
    world.hospital.folder.base(first.base).unlink()
    del world.consortium.artifacts[first.base]
    world.consortium.ask(world.hospital, world.open(2))
    assert (world.trainer.trained, world.submitted().metrics.staleness) == (2, 0)


def test_a_job_that_waits_for_all_throws_late_work_away(world: World) -> None:
    world.trainer.meanwhile.append(lambda: world.end(1))
    world.consortium.ask(world.hospital, world.open(1, asynchronous=False))
    world.consortium.ask(world.hospital, world.open(2, asynchronous=False))
    assert (world.trainer.trained, world.submitted().metrics.staleness) == (2, 0)


def test_a_node_that_is_told_to_stop_stops_at_once(world: World) -> None:
    world.trainer.meanwhile.append(world.hospital.stop.set)
    with pytest.raises(Stopped):
        world.consortium.ask(world.hospital, world.open(1))


def test_an_aggregator_that_does_not_answer_holds_nothing_up(world: World) -> None:
    first = world.open(1)

    def meanwhile() -> None:
        world.end(1)
        world.consortium.failures["tasks"] += [Unavailable("away")] * 99

    world.trainer.meanwhile.append(meanwhile)
    world.consortium.ask(world.hospital, first)
    assert world.hospital.has_ended(first)
    assert late.following(world.hospital.consortium, ACCOUNT.address, first) is None


def test_older_nodes_and_digests_see_no_new_member(world: World) -> None:
    task = world.open(1)
    assert task.model_dump(mode="json")["asynchronous"] is True
    assert "asynchronous" not in task.model_copy(update={"asynchronous": False}).model_dump(mode="json")

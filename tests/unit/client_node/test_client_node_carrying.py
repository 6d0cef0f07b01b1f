"""What a hospital carries from round to round: its control variate, and tensors that are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from concilia_client_node import networks, training
from concilia_client_node.service import Hospital
from concilia_client_node.trainer import NOTHING, Carried, Check, Counts, Outcome, Tensors
from concilia_kit import tensorfile
from concilia_kit.wire.chain import Reason, RoundStatus, UpdateSubmission
from concilia_kit.wire.metadata import STATE, state_name
from concilia_kit.wire.progress import Progress, Stage
from concilia_kit.wire.training import (
    SCORE_BINS,
    Architecture,
    EvaluateTask,
    Evaluation,
    LocalTraining,
    Personal,
    TrainTask,
)
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.unit.client_node.hospitals import Untrained, hospital_of

from .test_client_node_training import CPU, small_network, some_pictures

JOB = "ef" * 32
ACCOUNT: LocalAccount = Account.from_key("0x" + 63 * "0" + "4")
REACH = 0.5
OWN = frozenset({"norm.weight"})
Arrays = dict[str, npt.NDArray[Any]]


@dataclass
class Stepping(Untrained):
    """A trainer that takes a step of its own from wherever it starts, and notes what it was given."""

    given: list[Carried] = field(default_factory=list)
    judged: list[Carried] = field(default_factory=list)

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
        self.given.append(carried)
        file = tensorfile.TensorFile.open(base)
        made = {name: np.array(carried.personal.get(name, file.tensor(name))) for name in file}
        for number, name in enumerate(("w", "norm.weight"), len(self.given)):
            made[name] = made[name] - np.float32(0.25 * number)
        return Outcome(0.5, 0.75, 40, 30, REACH, 1.5 if local.first_loss else None), made

    def personal(self, architecture: Architecture, which: Personal) -> frozenset[str]:
        return OWN if which is Personal.NORMALISATION else frozenset()

    def evaluate(
        self,
        architecture: Architecture,
        model: Path,
        image_size: int,
        limits: Evaluation,
        seed: int,
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
        calibrate: bool = False,
    ) -> tuple[Counts, int]:
        self.judged.append(carried)
        rows, bins = ((0,) * 7,) * 7, ((0,) * SCORE_BINS,) * 7
        return Counts(rows, bins, bins, 0.0, 0, 0), 0


@pytest.fixture
def hospital(consortium: Any, tmp_path: Path) -> Iterator[Hospital]:
    with hospital_of(consortium, ACCOUNT, tmp_path / "node", Stepping()) as made:
        yield made


def model(consortium: Any, folder: Path, seed: int, state: str | None = None) -> str:
    rng = np.random.default_rng(seed)
    made: Arrays = {name: rng.normal(size=5).astype(np.float32) for name in ("w", "norm.weight")}
    tensorfile.write(folder / "model", made | {"n": np.array(seed)}, {} if state is None else {STATE: state})
    return str(consortium.keep((folder / "model").read_bytes()))


def read(consortium: Any, folder: Path, digest: str) -> Arrays:
    (folder / "read").write_bytes(consortium.artifacts[digest])
    file = tensorfile.TensorFile.open(folder / "read")
    return {name: np.array(file.tensor(name)) for name in file}


def last(consortium: Any, hospital: Hospital) -> Progress:
    """How the last task ended, once all of it was told."""
    hospital.reporter.flush(10)
    found: Progress = consortium.progress[-1]
    return found


def ask(consortium: Any, hospital: Hospital, number: int, base: str, **local: Any) -> UpdateSubmission:
    consortium.open_round(JOB, number, base)
    task = TrainTask(
        job=JOB,
        round=number,
        architecture=Architecture.RESNET18,
        base=base,
        seed=1,
        deadline=2**40,
        local=LocalTraining(**local),
    )
    consortium.ask(hospital, task)
    assert last(consortium, hospital).stage is Stage.SUBMITTED, consortium.progress[-1]
    return UpdateSubmission.model_validate_json(consortium.submissions[-1])


def close(consortium: Any, number: int, reason: Reason | None = None) -> None:
    found = consortium.rounds[JOB, number]
    updates = tuple(item.model_copy(update={"reason": reason}) for item in found.updates)
    consortium.rounds[JOB, number] = found.model_copy(update={"status": RoundStatus.CLOSED, "updates": updates})


def control(consortium: Any, folder: Path, value: float) -> str:
    kept = {state_name("c", name): np.full(5, value, np.float32) for name in ("w", "norm.weight")}
    tensorfile.write(folder / "control", kept)
    return str(consortium.keep((folder / "control").read_bytes()))


# ------------------------------------------------------------------------------------------------------------- SCAFFOLD


def test_a_control_variate_is_kept_told_to_nobody_and_corrects_the_next_training(
    consortium: Any, hospital: Hospital, tmp_path: Path
) -> None:
    """By algorithm 1, option II, worked by hand: the first step changes w by -0.25, so c_1 = 0.25 / 0.5 = 0.5."""
    first = ask(consortium, hospital, 1, model(consortium, tmp_path, 1), control=True)
    assert first.metrics.reach == REACH
    assert hospital.trainer.given[0].correction == {}  # type: ignore[attr-defined]
    close(consortium, 1)
    base = model(consortium, tmp_path, 2, control(consortium, tmp_path, 2.0))
    ask(consortium, hospital, 2, base, control=True)
    correction = hospital.trainer.given[1].correction  # type: ignore[attr-defined]
    np.testing.assert_allclose(correction["w"], 2.0 - 0.5, rtol=1e-5)
    np.testing.assert_allclose(correction["norm.weight"], 2.0 - 1.0, rtol=1e-5)
    close(consortium, 2)
    # The second changes w by -0.5: c_2 = c_1 - c + 0.5 / 0.5 = 0.5 - 2 + 1.
    base = model(consortium, tmp_path, 3, control(consortium, tmp_path, 0.0))
    ask(consortium, hospital, 3, base, control=True)
    np.testing.assert_allclose(hospital.trainer.given[2].correction["w"], 0.5, rtol=1e-5)  # type: ignore[attr-defined]


def test_a_control_variate_of_an_update_that_did_not_count_is_dropped(
    consortium: Any, hospital: Hospital, tmp_path: Path
) -> None:
    ask(consortium, hospital, 1, model(consortium, tmp_path, 1), control=True)
    close(consortium, 1, next(iter(Reason)))
    base = model(consortium, tmp_path, 2, control(consortium, tmp_path, 2.0))
    ask(consortium, hospital, 2, base, control=True)
    np.testing.assert_allclose(hospital.trainer.given[1].correction["w"], 2.0)  # type: ignore[attr-defined]


def test_what_another_strategy_remembers_is_no_control_variate(
    consortium: Any, hospital: Hospital, tmp_path: Path
) -> None:
    tensorfile.write(tmp_path / "other", {state_name("m", "w"): np.ones(5, np.float32)})
    base = model(consortium, tmp_path, 1, consortium.keep((tmp_path / "other").read_bytes()))
    ask(consortium, hospital, 1, base, control=True)
    assert hospital.trainer.given[0].correction == {}  # type: ignore[attr-defined]


def test_a_control_variate_of_another_model_is_refused(consortium: Any, hospital: Hospital, tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "odd", {state_name("c", "w"): np.zeros(3, np.float32)})
    base = model(consortium, tmp_path, 1, consortium.keep((tmp_path / "odd").read_bytes()))
    with pytest.raises(AssertionError, match="does not fit the model"):
        ask(consortium, hospital, 1, base, control=True)


# ------------------------------------------------------------------------------------------------- tensors of one's own


def test_own_tensors_stay_at_the_hospital_and_go_on_from_round_to_round(
    consortium: Any, hospital: Hospital, tmp_path: Path
) -> None:
    base = model(consortium, tmp_path, 1)
    start = read(consortium, tmp_path, base)
    told = ask(consortium, hospital, 1, base, personal=Personal.NORMALISATION)
    update = read(consortium, tmp_path, told.update.digest)
    assert (update["norm.weight"] == start["norm.weight"]).all()
    assert (update["w"] != start["w"]).all()
    close(consortium, 1, next(iter(Reason)))  # whether it counted is nothing to what is one's own
    later = model(consortium, tmp_path, 2)
    ask(consortium, hospital, 2, later, personal=Personal.NORMALISATION)
    given = hospital.trainer.given[1].personal  # type: ignore[attr-defined]
    np.testing.assert_allclose(given["norm.weight"], start["norm.weight"] - 0.5, rtol=1e-5)
    assert set(given) == OWN


def test_a_model_is_judged_with_what_is_ones_own(consortium: Any, hospital: Hospital, tmp_path: Path) -> None:
    base = model(consortium, tmp_path, 1)
    start = read(consortium, tmp_path, base)
    ask(consortium, hospital, 1, base, personal=Personal.NORMALISATION)
    result = model(consortium, tmp_path, 2)
    found = consortium.rounds[JOB, 1]
    consortium.rounds[JOB, 1] = found.model_copy(update={"status": RoundStatus.CLOSED, "global_digest": result})
    for personal in Personal.NORMALISATION, Personal.NOTHING:
        task = EvaluateTask(
            job=JOB,
            round=1,
            architecture=Architecture.RESNET18,
            model=result,
            seed=1,
            image_size=32,
            evaluation=Evaluation(),
            personal=personal,
        )
        consortium.ask(hospital, task)
        assert last(consortium, hospital).stage is Stage.EVALUATED, consortium.progress[-1]
    with_own, without = hospital.trainer.judged  # type: ignore[attr-defined]
    np.testing.assert_allclose(with_own.personal["norm.weight"], start["norm.weight"] - 0.5, rtol=1e-5)
    assert without.personal == {}


def test_the_first_loss_is_told_where_it_is_asked_for(consortium: Any, hospital: Hospital, tmp_path: Path) -> None:
    assert ask(consortium, hospital, 1, model(consortium, tmp_path, 1), first_loss=True).metrics.first_loss == 1.5
    assert ask(consortium, hospital, 2, model(consortium, tmp_path, 2)).metrics.first_loss is None


# ----------------------------------------------------------------------------------------------------------- with torch


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        (Architecture.RESNET18, {"fc.weight", "fc.bias"}),
        (Architecture.MOBILENET_V2, {"classifier.1.weight", "classifier.1.bias"}),
    ],
)
def test_which_tensors_are_a_hospitals_own(architecture: Architecture, head: set[str]) -> None:
    state = networks.build(architecture).state_dict()
    assert networks.personal(architecture, Personal.HEAD) == head
    norms = networks.personal(architecture, Personal.NORMALISATION)
    assert {name.rpartition(".")[2] for name in norms} == {
        *("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert {name for name in state if "running_mean" in name} <= norms
    assert not norms & head
    assert networks.personal(architecture, Personal.NOTHING) == frozenset()


def test_own_tensors_take_their_places_where_they_fit(tmp_path: Path) -> None:
    networks.save(networks.build(Architecture.MOBILENET_V2), tmp_path / "m")
    own: Arrays = {"classifier.1.bias": np.arange(7, dtype=np.float32), "x": np.ones(1)}
    own["classifier.1.weight"] = np.zeros(3, np.float32)
    state = networks.load(Architecture.MOBILENET_V2, tmp_path / "m", own).state_dict()
    assert state["classifier.1.bias"].tolist() == list(range(7))
    assert state["classifier.1.weight"].shape == (7, 1280)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_reach_is_how_far_a_constant_gradient_goes(momentum: float) -> None:
    """A gradient that is 1 everywhere, as a correction that drowns the loss's: the difference is the reach."""
    local = LocalTraining(epochs=2, batch_size=8, learning_rate=1e-3, momentum=momentum, weight_decay=0, augment=False)
    network = small_network()
    start = {name: value.clone() for name, value in network.named_parameters()}
    correction = {name: np.full(tuple(value.shape), 1e6, np.float32) for name, value in start.items()}
    outcome = training.train(network, some_pictures(), local, 1, CPU, correction=correction)
    assert outcome.reach is not None
    for name, value in network.named_parameters():
        moved = (start[name] - value).double().mean().item() / 1e6
        assert moved == pytest.approx(outcome.reach, rel=1e-3), name


def test_without_a_correction_nothing_changes() -> None:
    local = LocalTraining(epochs=1, batch_size=8, learning_rate=0.05)
    one, other = small_network(), small_network()
    training.train(one, some_pictures(), local, 1, CPU)
    zeros = {name: np.zeros(tuple(value.shape), np.float32) for name, value in other.named_parameters()}
    training.train(other, some_pictures(), local, 1, CPU, correction={**zeros, "of another network": np.ones(1)})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_first_loss_is_the_models_before_training() -> None:
    network, pictures = small_network(), some_pictures()
    network.eval()
    with torch.no_grad():
        logits = network(training.as_input(pictures.images))
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(pictures.labels)).item()
    outcome = training.train(network, pictures, LocalTraining(batch_size=8, first_loss=True), 1, CPU)
    assert outcome.first_loss == pytest.approx(expected, rel=1e-5)
    again, other = small_network(), small_network()
    training.train(again, pictures, LocalTraining(batch_size=8, first_loss=True), 1, CPU)
    training.train(other, pictures, LocalTraining(batch_size=8), 1, CPU)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), other.parameters(), strict=True))

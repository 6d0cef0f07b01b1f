"""An update's encoding at the hospital: made, signed, and what it leaves out told later, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from concilia_client_node.service import Hospital
from concilia_client_node.store import Kind, NodeFolder
from concilia_client_node.trainer import NOTHING, Carried, Check, Outcome, Tensors
from concilia_kit import digests, encodings, tensorfile
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import Reason, RoundStatus, UpdateSubmission
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import Architecture, LocalTraining, TrainTask
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.unit.client_node.hospitals import Untrained, hospital_of

JOB = "cd" * 32
ACCOUNT: LocalAccount = Account.from_key("0x" + 63 * "0" + "3")
SHAPES = {"conv.weight": (8, 4, 3, 3), "fc.weight": (7, 2000), "bn.running_var": (8,)}


@dataclass
class Walk(Untrained):
    """A trainer whose training is a step that seed and base decide; `steps` are those it made."""

    loud: float = 1.0
    steps: list[dict[str, npt.NDArray[np.float32]]] = field(default_factory=list)

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
        rng = np.random.default_rng(seed)
        step = {name: (rng.normal(0, 1e-3, shape)).astype(np.float32) for name, shape in SHAPES.items()}
        for tensor in step.values():
            tensor.reshape(-1)[0] = self.loud
        self.steps.append(step)
        made: dict[str, npt.NDArray[Any]] = {name: file.tensor(name) + step[name] for name in SHAPES}
        progress(1.0)
        return Outcome(0.5, 0.75, 40, 30), made | {"n": file.tensor("n") + 1}


@pytest.fixture
def base(consortium: Any, tmp_path: Path) -> str:
    rng = np.random.default_rng(9)
    start: dict[str, npt.NDArray[Any]] = {
        name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in SHAPES.items()
    }
    tensorfile.write(tmp_path / "base", start | {"n": np.array(1)})
    digest: str = consortium.keep((tmp_path / "base").read_bytes())
    return digest


@pytest.fixture
def hospital(consortium: Any, tmp_path: Path) -> Iterator[Hospital]:
    with hospital_of(consortium, ACCOUNT, tmp_path / "node", Walk()) as made:
        yield made


def task(consortium: Any, number: int, base: str, text: str) -> TrainTask:
    """An open round, and the task for it."""
    consortium.open_round(JOB, number, base)
    return TrainTask(
        job=JOB,
        round=number,
        architecture=Architecture.RESNET18,
        base=base,
        seed=number,
        deadline=2**40,
        local=LocalTraining(),
        encoding=Encoding.parse(text),
    )


def close(consortium: Any, number: int, reason: Reason | None = None, status: RoundStatus = RoundStatus.CLOSED) -> None:
    found = consortium.rounds[JOB, number]
    updates = tuple(item.model_copy(update={"reason": reason}) for item in found.updates)
    consortium.rounds[JOB, number] = found.model_copy(update={"status": status, "updates": updates})


def submitted(consortium: Any) -> UpdateSubmission:
    return UpdateSubmission.model_validate_json(consortium.submissions[-1])


def decoded(consortium: Any, base: str, folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The last submitted update's model."""
    (folder / "u").write_bytes(consortium.artifacts[submitted(consortium).update.digest])
    (folder / "b").write_bytes(consortium.artifacts[base])
    reader = encodings.reader(TensorFile.open(folder / "u"), TensorFile.open(folder / "b"))
    return {name: reader.block(name, 0, spec.size).reshape(spec.shape) for name, spec in reader.tensors.items()}


def start_of(consortium: Any, base: str, folder: Path) -> dict[str, npt.NDArray[Any]]:
    (folder / "b").write_bytes(consortium.artifacts[base])
    file = TensorFile.open(folder / "b")
    return {name: np.array(file.tensor(name)) for name in file}


@pytest.mark.parametrize("text", ["float16", "int8", "int8+zstd", "topk:0.01", "none+zstd"])
def test_the_encoding_its_bytes_and_the_digest_are_signed(
    consortium: Any, hospital: Hospital, base: str, tmp_path: Path, text: str
) -> None:
    consortium.ask(hospital, task(consortium, 1, base, text))
    handed_in = submitted(consortium)
    content = consortium.artifacts[handed_in.update.digest]
    assert hashlib.sha256(content).hexdigest() == handed_in.update.digest
    encoded = handed_in.metrics.encoded
    assert encoded is not None
    assert (str(encoded.encoding), encoded.bytes) == (text, len(content))
    assert encoded.bytes_plain == sum(4 * int(np.prod(shape)) for shape in SHAPES.values()) + 8
    assert handed_in.update.metrics == digests.of_json(handed_in.metrics.model_dump(mode="json"))
    assert handed_in.metrics.bytes_upload == len(content)
    assert decoded(consortium, base, tmp_path)["n"] == 2


def test_a_plain_update_says_nothing_of_encodings(consortium: Any, hospital: Hospital, base: str) -> None:
    consortium.ask(hospital, task(consortium, 1, base, "none"))
    assert b"encoded" not in consortium.submissions[-1]
    assert not list((hospital.folder.beside(Kind.LEFT, JOB, 1)).parent.glob("left*"))


def test_top_k_chooses_what_torch_chooses(consortium: Any, hospital: Hospital, base: str, tmp_path: Path) -> None:
    consortium.ask(hospital, task(consortium, 1, base, "topk:0.01"))
    start, found = start_of(consortium, base, tmp_path), decoded(consortium, base, tmp_path)
    for name in ("conv.weight", "fc.weight"):
        trained = torch.from_numpy(start[name] + hospital.trainer.steps[0][name])  # type: ignore[attr-defined]
        delta = (trained - torch.from_numpy(start[name])).reshape(-1)
        chosen = torch.topk(delta.abs(), -(-delta.numel() // 100)).indices
        assert set(np.flatnonzero(found[name] != start[name])) == set(chosen.tolist())


@pytest.mark.parametrize("text", ["int8", "topk:0.01+zstd"])
def test_what_a_round_left_out_goes_into_the_next_one(
    consortium: Any, hospital: Hospital, base: str, tmp_path: Path, text: str
) -> None:
    consortium.ask(hospital, task(consortium, 1, base, text))
    start, first = start_of(consortium, base, tmp_path), decoded(consortium, base, tmp_path)
    close(consortium, 1)
    again = replace(hospital, folder=NodeFolder(tmp_path / "node"))  # another process, after a restart
    consortium.ask(again, task(consortium, 2, base, text))
    second = decoded(consortium, base, tmp_path)
    left = TensorFile.open(hospital.folder.beside(Kind.LEFT, JOB, 2))
    steps = hospital.trainer.steps  # type: ignore[attr-defined]
    for name in SHAPES:
        meant = steps[0][name].astype(np.float64) + steps[1][name]
        told = (first[name].astype(np.float64) - start[name]) + (second[name].astype(np.float64) - start[name])
        np.testing.assert_allclose(told + left.tensor(name), meant, atol=1e-6)
        assert np.abs(meant - told).max() > 1e-5 or name == "bn.running_var"  # something was left to tell


def test_a_task_that_is_tried_again_adds_nothing_twice(
    consortium: Any, hospital: Hospital, base: str, tmp_path: Path
) -> None:
    consortium.ask(hospital, task(consortium, 1, base, "int8"))
    close(consortium, 1)
    second = task(consortium, 2, base, "int8")
    consortium.failures["upload"] = [Unavailable("down")] * 50
    with pytest.raises(Problem, match="down"):
        consortium.ask(hospital, second)
    consortium.failures["upload"] = []
    made = hospital.folder.update(JOB, 2)
    first = made.read_bytes()
    made.unlink()  # as if the node had died before it noted that it had trained
    (made.parent / "trained.json").unlink()
    consortium.ask(hospital, second)
    assert made.read_bytes() == first
    assert len(hospital.trainer.steps) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("reason", "status"), [(Reason.SAMPLE_COUNT, RoundStatus.CLOSED), (None, RoundStatus.ABORTED)])
def test_what_an_update_that_did_not_count_left_out_is_forgotten_and_what_came_before_is_not(
    consortium: Any, hospital: Hospital, base: str, tmp_path: Path, reason: Reason | None, status: RoundStatus
) -> None:
    consortium.ask(hospital, task(consortium, 1, base, "int8"))
    close(consortium, 1)
    consortium.ask(hospital, task(consortium, 2, base, "int8"))
    close(consortium, 2, reason, status)
    before = TensorFile.open(hospital.folder.beside(Kind.LEFT, JOB, 1))
    kept = {name: np.array(before.tensor(name)) for name in before}
    consortium.ask(hospital, task(consortium, 3, base, "int8"))
    start, third = start_of(consortium, base, tmp_path), decoded(consortium, base, tmp_path)
    left, step = TensorFile.open(hospital.folder.beside(Kind.LEFT, JOB, 3)), hospital.trainer.steps[2]  # type: ignore[attr-defined]
    for name in SHAPES:
        told = (third[name].astype(np.float64) - start[name]) + left.tensor(name)
        np.testing.assert_allclose(told, step[name].astype(np.float64) + kept[name], atol=1e-6)
    assert hospital.folder.earlier(Kind.LEFT, JOB, 4) == [3, 1]


def test_only_the_last_round_that_counted_and_the_newest_are_kept(
    consortium: Any, hospital: Hospital, base: str
) -> None:
    for number in range(1, 5):
        consortium.ask(hospital, task(consortium, number, base, "int8"))
        close(consortium, number)
    assert hospital.folder.earlier(Kind.LEFT, JOB, 9) == [4, 3]


def test_a_damaged_rest_is_left_alone(consortium: Any, hospital: Hospital, base: str, tmp_path: Path) -> None:
    consortium.ask(hospital, task(consortium, 1, base, "int8"))
    close(consortium, 1)
    hospital.folder.beside(Kind.LEFT, JOB, 1).write_bytes(b"nonsense")
    consortium.ask(hospital, task(consortium, 2, base, "int8"))
    assert hospital.reporter.flush(10)
    assert consortium.progress[-1].stage is Stage.SUBMITTED


def test_a_model_that_is_not_finite_is_refused_before_it_is_sent(
    consortium: Any, hospital: Hospital, base: str
) -> None:
    hospital.trainer.loud = float("nan")  # type: ignore[attr-defined]
    consortium.ask(hospital, task(consortium, 1, base, "int8+zstd"))
    assert hospital.reporter.flush(10)
    assert consortium.progress[-1].stage is Stage.REFUSED
    assert "cannot be sent as int8+zstd: a trained tensor is not finite" in consortium.progress[-1].detail
    assert consortium.submissions == []

"""Adapters at a hospital: what trains and what stays, what is refused, and a trunk that is fetched once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from concilia_client_node import adapters, networks, training
from concilia_client_node.errors import WeightsError
from concilia_client_node.pictures import Pictures
from concilia_client_node.service import Hospital
from concilia_client_node.store import TRUNKS_KEPT, NodeFolder
from concilia_client_node.trainer import NOTHING, Carried, Check, Counts, Outcome, Tensors
from concilia_kit import tensorfile
from concilia_kit.adapters import layout, merged
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.tensorfile import TensorFile, TensorSpec
from concilia_kit.wire.adapter import ADAPTER, TRUNK, Adapter
from concilia_kit.wire.chain import RoundStatus, UpdateSubmission
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import (
    Architecture,
    EvaluateTask,
    Evaluation,
    LocalTraining,
    Optimizer,
    Personal,
    Trained,
    TrainTask,
)
from eth_account import Account
from eth_account.signers.local import LocalAccount
from torch import nn

from .hospitals import Untrained, hospital_of

CPU = torch.device("cpu")
NET = Architecture.RESNET18
JOB, FAR = "ab" * 32, 2**40
ACCOUNT: LocalAccount = Account.from_key("0x" + 63 * "0" + "4")
Arrays = dict[str, npt.NDArray[Any]]


def tiny(architecture: Architecture, classes: int = 7) -> nn.Module:
    """A convolution, a depthwise one, a norm, a linear layer with a bias, and a head."""
    width = 8 if architecture is NET else 4
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.Conv2d(width, width, 3, groups=width),
        nn.BatchNorm2d(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 24),
        nn.ReLU(),
        nn.Linear(24, classes),
    )


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "build", tiny)


def specs(network: nn.Module) -> dict[str, TensorSpec]:
    made = networks.tensors(network)
    return {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in made.items()}


def whole() -> Arrays:
    torch.manual_seed(0)
    return networks.tensors(tiny(NET))


def over(trunk: Arrays, kind: str, *, zero: bool = True) -> Arrays:
    """An adapter's tensors as the model service makes them, or as a round may leave them."""
    rng = np.random.default_rng(1)
    found: Arrays = {}
    for name, spec in layout(specs(tiny(NET)), kind).items():
        value = trunk[name] if name in trunk else rng.normal(size=spec.shape).astype(spec.dtype)
        found[name] = np.zeros_like(value) if zero and name.endswith("lora_b") else value
    return found


@dataclass
class Files:
    """A trunk and an adapter over it, written anew from these tensors by `write`."""

    folder: Path
    kind: str = "lora:2"
    trunk_tensors: Arrays = field(default_factory=whole)
    trunk_metadata: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] | None = None

    def __post_init__(self) -> None:
        self.tensors = over(self.trunk_tensors, self.kind)
        self.trunk, self.path = self.folder / "trunk", self.folder / "adapter"

    def write(self) -> None:
        digest = tensorfile.write(self.trunk, self.trunk_tensors, self.trunk_metadata)
        said = Adapter(digest, self.kind).metadata() if self.metadata is None else self.metadata
        tensorfile.write(self.path, self.tensors, said)

    def load(self, **given: Any) -> nn.Module:
        self.write()
        return networks.load(NET, self.path, trunk=self.trunk, **given)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def some_pictures(count: int = 24) -> Pictures:
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Pictures(images, tuple(index % 7 for index in range(count)), tuple(f"L{i}" for i in range(count)))


# ------------------------------------------------------------------------------------------------------------ a network


def test_its_state_is_the_adapters_file(files: Files) -> None:
    network = files.load()
    assert set(network.state_dict()) == set(files.tensors)
    assert all(np.array_equal(tensor, files.tensors[name]) for name, tensor in networks.tensors(network).items())
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in files.tensors if "running_" not in name and "num_batches" not in name}


@pytest.mark.parametrize("local", [{}, {"optimizer": Optimizer.ADAMW}, {"proximal_mu": 0.1}])
@pytest.mark.parametrize("kind", ["norms", "lora:2"])
def test_training_moves_the_adapter_and_nothing_else(tmp_path: Path, kind: str, local: dict[str, Any]) -> None:
    files = Files(tmp_path, kind)
    network = files.load()
    frozen = {name: tensor.clone() for name, tensor in network.named_buffers() if name not in files.tensors}
    assert len(frozen) == 6
    settings = LocalTraining(batch_size=8, learning_rate=0.05, **local)
    training.train(network, some_pictures(), settings, 1, CPU)
    buffers = dict(network.named_buffers())
    assert all(torch.equal(buffers[name], tensor) for name, tensor in frozen.items())
    made = networks.tensors(network)
    assert set(made) == set(files.tensors)
    assert not [name for name in made if np.array_equal(made[name], files.tensors[name])]


def test_what_was_trained_is_what_the_merged_model_computes(files: Files) -> None:
    network = files.load()
    training.train(network, some_pictures(), LocalTraining(batch_size=8, learning_rate=0.5), 1, CPU)
    state = merged(files.trunk_tensors, networks.tensors(network))
    other = tiny(NET)
    other.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in state.items()})
    inputs = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(network.eval()(inputs), other.eval()(inputs), rtol=1e-5, atol=1e-5)


def test_the_head_alone_trains_where_a_schedule_says_so(files: Files) -> None:
    network = files.load()
    training.train(network, some_pictures(), LocalTraining(batch_size=8, trained=Trained.HEAD), 1, CPU)
    made = networks.tensors(network)
    assert {name for name in made if not np.array_equal(made[name], files.tensors[name])} == {"7.weight", "7.bias"}


def test_corrections_are_by_the_adapters_names(files: Files) -> None:
    """SCAFFOLD's: one that drowns every gradient moves each factor by the reach."""
    files.tensors = over(files.trunk_tensors, files.kind, zero=False)
    network = files.load()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    local = LocalTraining(batch_size=8, learning_rate=1e-3, weight_decay=0, augment=False)
    drowning = {name: np.full(tensor.shape, 1e6, np.float32) for name, tensor in files.tensors.items()}
    outcome = training.train(network, some_pictures(), local, 1, CPU, correction=drowning)
    assert outcome.reach is not None
    for name, value in network.named_parameters():
        assert (before[name] - value).double().mean().item() / 1e6 == pytest.approx(outcome.reach, rel=1e-3), name


@pytest.mark.parametrize("which", [Personal.NORMALISATION, Personal.HEAD])
@pytest.mark.parametrize("kind", ["norms", "lora:2"])
def test_what_is_a_hospitals_own_is_in_every_adapter(tmp_path: Path, kind: str, which: Personal) -> None:
    files = Files(tmp_path, kind)
    own = networks.personal(NET, which)
    assert own
    assert own <= set(files.tensors)
    mine = {name: files.tensors[name] + 1 for name in own}
    state = networks.tensors(files.load(instead=mine))
    assert all(np.array_equal(state[name], mine.get(name, files.tensors[name])) for name in state)


def test_a_layer_whose_bias_is_frozen_still_adds_it(files: Files) -> None:
    files.trunk_tensors["5.bias"] = np.full(24, 3.0, np.float32)
    network = files.load()
    layer = network.get_submodule("5")
    assert isinstance(layer, adapters.LowRank)
    assert layer(torch.zeros(1, 8)).tolist() == [[3.0] * 24]


# ------------------------------------------------------------------------------------------------------ what is refused


def _drop(name: str) -> Callable[[Files], object]:
    return lambda files: files.tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop("5.lora_a"), "lacks tensor 5.lora_a; it does not fit an adapter lora:2 of resnet18"),
        (_drop("2.running_var"), "lacks tensor 2.running_var"),
        (lambda f: f.tensors.update({"0.weight": f.trunk_tensors["0.weight"]}), "the foreign tensor 0.weight"),
        (lambda f: f.tensors.update({"5.lora_a": np.zeros((3, 8), np.float32)}), "tensor 5.lora_a is float32 [3, 8]"),
        (lambda f: setattr(f, "kind", "norms"), "the foreign tensor 0.lora_a; it does not fit an adapter norms"),
        (lambda f: setattr(f, "kind", "lora:1"), "tensor 0.lora_a is float32 [2, 27]"),
        (
            lambda f: f.trunk_tensors.pop("0.weight"),
            "the adapter's trunk lacks tensor 0.weight; it does not fit resnet18",
        ),
        (lambda f: f.trunk_tensors.update({"0.weight": np.zeros((4, 3, 3, 3), np.float32)}), "tensor 0.weight is"),
        (lambda f: f.trunk_metadata.update(Adapter("cd" * 32, "norms").metadata()), "trunk is an adapter itself"),
        (lambda f: setattr(f, "metadata", {TRUNK: "ab" * 32}), "names its trunk and its kind"),
        (lambda f: setattr(f, "metadata", {TRUNK: "ab" * 32, ADAPTER: "lora:65"}), "no kind of adapter"),
        (lambda f: setattr(f, "metadata", {}), "lacks tensor 0.bias; it does not fit resnet18"),
    ],
)
def test_files_that_do_not_go_together(files: Files, change: Callable[[Files], object], said: str) -> None:
    change(files)
    with pytest.raises(WeightsError) as caught:
        files.load()
    assert said in str(caught.value)


def test_an_adapter_without_its_trunk(files: Files) -> None:
    files.write()
    with pytest.raises(WeightsError, match="its trunk is not at hand"):
        networks.load(NET, files.path)
    with pytest.raises(WeightsError, match="cannot be used"):
        networks.load(NET, files.path, trunk=files.folder / "nowhere")


# -------------------------------------------------------------------------------------------------- the life of a task


@dataclass
class Looking(Untrained):
    """A trainer that loads what it is given, as the real one does, and steps by one."""

    trunks: list[Path | None] = field(default_factory=list)

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
        self.trunks.append(trunk)
        made = networks.tensors(networks.load(architecture, base, trunk=trunk))
        return Outcome(0.5, 0.75, 40, 30, 0.5), {
            name: tensor + np.ones((), tensor.dtype) for name, tensor in made.items()
        }

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
        self.trunks.append(trunk)
        networks.load(architecture, model, trunk=trunk)
        raise WeightsError("looked at")


@pytest.fixture
def hospital(consortium: Any, tmp_path: Path) -> Iterator[Hospital]:
    with hospital_of(consortium, ACCOUNT, tmp_path / "node", Looking()) as made:
        yield made


@dataclass
class Stored:
    """The digests of a trunk and of an adapter over it that the consortium keeps."""

    trunk: str
    adapter: str


@pytest.fixture
def stored(consortium: Any, files: Files) -> Stored:
    files.write()
    return Stored(*(consortium.keep(path.read_bytes()) for path in (files.trunk, files.path)))


def task_of(consortium: Any, base: str, number: int = 1) -> TrainTask:
    consortium.open_round(JOB, number, base)
    return TrainTask(
        job=JOB, round=number, architecture=NET, base=base, seed=4, deadline=FAR, local=LocalTraining(image_size=32)
    )


def told(consortium: Any, hospital: Hospital) -> Any:
    assert hospital.reporter.flush(10)
    return consortium.progress[-1]


def test_a_round_moves_the_adapter_alone_and_the_trunk_once(
    consortium: Any, hospital: Hospital, files: Files, stored: Stored, tmp_path: Path
) -> None:
    consortium.ask(hospital, task_of(consortium, stored.adapter))
    first = UpdateSubmission.model_validate_json(consortium.submissions[0])
    content = consortium.artifacts[first.update.digest]
    (tmp_path / "update").write_bytes(content)
    update = TensorFile.open(tmp_path / "update")
    assert {name: update.header.tensors[name].shape for name in update} == {
        name: tensor.shape for name, tensor in files.tensors.items()
    }
    assert update.header.metadata == {}  # what it goes over is the base's to say
    sizes = [len(consortium.artifacts[each]) for each in (stored.adapter, stored.trunk)]
    assert first.metrics.bytes_download == sum(sizes)
    assert first.metrics.bytes_upload == len(content) <= sizes[0]
    assert hospital.trainer.trunks == [hospital.folder.trunk(stored.trunk)]  # type: ignore[attr-defined]

    said = Adapter(stored.trunk, files.kind)
    tensorfile.write(tmp_path / "next", {name: update.tensor(name) for name in update}, said.metadata())
    following = consortium.keep((tmp_path / "next").read_bytes())
    found = consortium.rounds[JOB, 1]
    consortium.rounds[JOB, 1] = found.model_copy(update={"status": RoundStatus.CLOSED, "global_digest": following})
    consortium.ask(hospital, task_of(consortium, following, 2))
    second = UpdateSubmission.model_validate_json(consortium.submissions[1])
    assert second.metrics.bytes_download == len(consortium.artifacts[following])


def test_a_model_is_judged_over_its_trunk(consortium: Any, hospital: Hospital, stored: Stored) -> None:
    task = EvaluateTask(
        job=JOB, round=0, architecture=NET, model=stored.adapter, seed=4, image_size=32, evaluation=Evaluation()
    )
    consortium.ask(hospital, task)
    assert told(consortium, hospital).detail == "looked at"
    assert hospital.trainer.trunks == [hospital.folder.trunk(stored.trunk)]  # type: ignore[attr-defined]


def test_a_trunk_of_other_bytes_is_told_to_the_store_and_tried_again(
    consortium: Any, hospital: Hospital, stored: Stored
) -> None:
    content = consortium.artifacts[stored.trunk]
    consortium.artifacts[stored.trunk] = content[:-1] + bytes([content[-1] ^ 1])
    task = task_of(consortium, stored.adapter)
    with pytest.raises(Unavailable, match="the base model's trunk is not what the base model names"):
        consortium.ask(hospital, task)
    assert consortium.put_aside == {stored.trunk}
    assert "trunk is not what" in told(consortium, hospital).detail
    assert not hospital.folder.trunk(stored.trunk).exists()
    with pytest.raises(Problem) as waiting:
        consortium.ask(hospital, task)
    assert waiting.value.problem_code == "artifact_quarantined"
    consortium.keep(content)
    consortium.ask(hospital, task)
    assert len(consortium.submissions) == 1


def test_a_trunk_that_is_not_stored_ends_the_task(consortium: Any, hospital: Hospital, stored: Stored) -> None:
    del consortium.artifacts[stored.trunk]
    consortium.ask(hospital, task_of(consortium, stored.adapter))
    assert told(consortium, hospital).stage is Stage.REFUSED
    assert consortium.submissions == []


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({TRUNK: "ab" * 32}, "the base model cannot be used: an adapter names its trunk and its kind"),
        ({TRUNK: "../../secret", ADAPTER: "norms"}, "by what is no digest"),
    ],
)
def test_a_base_that_is_half_an_adapter_is_refused(
    consortium: Any, hospital: Hospital, files: Files, metadata: dict[str, str], said: str
) -> None:
    files.metadata = metadata
    files.write()
    consortium.ask(hospital, task_of(consortium, consortium.keep(files.path.read_bytes())))
    last = told(consortium, hospital)
    assert last.stage is Stage.REFUSED
    assert said in last.detail
    assert consortium.submissions == []


def test_a_trunk_of_another_architecture_is_refused(consortium: Any, hospital: Hospital, stored: Stored) -> None:
    task = task_of(consortium, stored.adapter).model_copy(update={"architecture": Architecture.MOBILENET_V2})
    consortium.ask(hospital, task)
    last = told(consortium, hospital)
    assert last.stage is Stage.REFUSED
    assert "an adapter lora:2 of mobilenet_v2" in last.detail


def test_models_that_come_and_go_leave_the_trunks_that_were_used_last(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    folder.open()
    for number in range(5):
        digest = hashlib.sha256(bytes([number])).hexdigest()
        folder.trunk(digest).write_bytes(b"")
        assert folder.use_trunk(digest)
    for number in range(6):
        folder.base(str(number)).write_bytes(b"")
        folder.use_base(str(number))
    assert len(list((tmp_path / "trunks").iterdir())) == TRUNKS_KEPT
    assert folder.use_trunk(digest)
    assert not folder.use_trunk("ab" * 32)

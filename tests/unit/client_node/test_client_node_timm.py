"""Networks of timm at a hospital: trained like any other where the extra is installed, and refused where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from concilia_client_node import dataset, networks, training
from concilia_client_node.errors import WeightsError
from concilia_client_node.local_data import LocalData
from concilia_client_node.pictures import Pictures
from concilia_client_node.split import SiteChoice
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import Architecture, Evaluation, LocalTraining, Personal, Trained, TrainTask
from eth_account import Account
from eth_account.signers.local import LocalAccount
from torch import nn

from tests.unit.client_node.hospitals import hospital_of

NET = "timm:resnet10t"
CPU = torch.device("cpu")
LOCAL = LocalTraining(batch_size=4, image_size=32, learning_rate=0.01)
ACCOUNT: LocalAccount = Account.from_key("0x" + 63 * "0" + "2")


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what importing it raises then is what it raises where it is not


def some_pictures(count: int = 8, size: int = 32) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Pictures(images, tuple(i % 7 for i in range(count)), tuple(f"L{i}" for i in range(count)))


def written(path: Path, net: Any = NET, classes: int = 7) -> Path:
    torch.manual_seed(0)
    networks.save(networks.build(net, classes), path)
    return path


def moved(local: LocalTraining, path: Path) -> set[str]:
    """The names of the tensors that a training changes."""
    network = networks.load(NET, path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training.train(network, some_pictures(), local, 1, CPU)
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def test_the_whole_network_is_trained_or_its_last_layer_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "w")
    all_of_them = set(networks.build(NET).state_dict())
    assert moved(LOCAL, path) >= {name for name in all_of_them if not name.endswith("num_batches_tracked")}
    assert moved(LOCAL.model_copy(update={"trained": Trained.HEAD}), path) == {"fc.weight", "fc.bias"}


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    path, found = written(tmp_path / "w"), []
    for _ in range(2):
        network = networks.load(NET, path)
        training.train(network, some_pictures(), LOCAL, 1, CPU)
        found.append(networks.save(network, tmp_path / "after"))
    assert found[0] == found[1]


def test_what_a_hospital_keeps_to_itself_is_found() -> None:
    network = networks.build(NET)
    of_norms = {
        f"{name}.{what}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for what in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert len(of_norms) > 20
    assert networks.personal(NET, Personal.NORMALISATION) == of_norms
    assert networks.personal(NET, Personal.HEAD) == {"fc.weight", "fc.bias"}
    assert networks.personal(NET, Personal.NOTHING) == set()
    assert "norm.weight" in networks.personal("timm:vit_tiny_patch16_224", Personal.NORMALISATION)


def test_a_network_without_normalisation_keeps_none_to_itself_and_says_so() -> None:
    with pytest.raises(WeightsError, match=r"timm:dm_nfnet_f0 has no normalisation"):
        networks.personal("timm:dm_nfnet_f0", Personal.NORMALISATION)


def test_tables_that_no_file_holds_are_there_after_loading(tmp_path: Path) -> None:
    net = "timm:swin_tiny_patch4_window7_224"
    path = written(tmp_path / "w", net)
    state = torch.random.get_rng_state()
    network = networks.load(net, path).eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(0)
    with torch.no_grad():
        inputs = torch.randn(1, 3, 224, 224)
        torch.manual_seed(0)
        assert torch.equal(network(inputs), networks.build(net).eval()(inputs))


@pytest.fixture
def trainer(drawn_folder: Path, tmp_path: Path) -> TorchTrainer:
    site = dataset.choose(dataset.read(drawn_folder), SiteChoice.parse("collection:drawn_south"), 0)
    return TorchTrainer(LocalData(site, "south", tmp_path, 1, 0.02), CPU, 1)


def test_pictures_of_another_size_than_a_network_takes_are_refused(trainer: TorchTrainer, tmp_path: Path) -> None:
    path = written(tmp_path / "w", "timm:vit_tiny_patch16_224")
    with pytest.raises(WeightsError, match="takes pictures of 224 pixels a side alone, and the job's have 32"):
        trainer.evaluate("timm:vit_tiny_patch16_224", path, 32, Evaluation(), 1, lambda: None)


def test_weights_of_another_network_are_refused(trainer: TorchTrainer, tmp_path: Path) -> None:
    path = written(tmp_path / "w", "timm:resnet10t")
    with pytest.raises(WeightsError, match="does not fit timm:mobilenetv3_small_050"):
        trainer.evaluate("timm:mobilenetv3_small_050", path, 32, Evaluation(), 1, lambda: None)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("timm:no_such_network", "has no network 'no_such_network'"),
        ("timm:deit_tiny_distilled_patch16_224", "cannot be trained here"),
    ],
)
def test_what_timm_has_not_is_refused(net: str, said: str) -> None:
    for make in (networks.build, networks.outline):
        with pytest.raises(WeightsError, match=said):
            make(net)


@pytest.mark.usefixtures("without_timm")
def test_without_the_extra_a_task_is_refused_in_one_sentence_that_names_it(
    consortium: Any, trainer: TorchTrainer, tmp_path: Path
) -> None:
    base = consortium.keep(written(tmp_path / "w", Architecture.MOBILENET_V2).read_bytes())
    consortium.open_round("ab" * 32, 1, base)
    local = LOCAL.model_copy(update={"max_images": 8})
    task = TrainTask(job="ab" * 32, round=1, architecture=NET, base=base, seed=4, deadline=2**40, local=local)
    with hospital_of(consortium, ACCOUNT, tmp_path / "node", trainer) as hospital:
        consortium.ask(hospital, task)
    told = consortium.progress[-1]
    assert told.stage is Stage.REFUSED
    assert told.detail == (
        "timm:resnet10t is a network of timm, which is not installed here: pip install 'concilia-client-node[timm]'"
    )


@pytest.mark.usefixtures("without_timm")
def test_without_the_extra_all_others_are_built() -> None:
    assert networks.outline(Architecture.RESNET18).state_dict()

"""Adapters as the model service makes and merges them are those that nodes train: of every architecture and kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from concilia_client_node import networks, training
from concilia_client_node.pictures import Pictures
from concilia_kit import tensorfile
from concilia_kit.adapters import layout
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.training import Architecture, LocalTraining
from concilia_model import adapters, architectures
from concilia_model.networks import Networks
from torch import nn

pytestmark = pytest.mark.integration

KINDS = ("norms", "lora:8", "lora:64")


@pytest.fixture(scope="module", params=list(Architecture))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Architecture, Path]:
    """An architecture, and a folder with a whole model of it and an adapter of each kind over it."""
    folder = tmp_path_factory.mktemp(request.param)
    service = Networks(1, 1, 10**6)
    whole = service.make_initial(request.param, 3, folder / "whole")
    for kind in KINDS:
        service.make_adapter(request.param, 3, folder / kind, trunk=folder / "whole", digest=whole.digest, kind=kind)
    return request.param, folder


def merged(architecture: Architecture, adapter: Path, trunk: Path) -> nn.Module:
    network = architectures.empty(architecture)
    state = {name: torch.from_numpy(tensor.copy()) for name, tensor in adapters.whole(adapter, trunk).items()}
    network.load_state_dict(state, assign=True)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_it_computes_what_the_trunk_does_to_the_last_bit(made: tuple[Architecture, Path], kind: str) -> None:
    architecture, folder = made
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = networks.load(architecture, folder / "whole").eval()
    adapted = networks.load(architecture, folder / kind, trunk=folder / "whole").eval()
    with torch.no_grad():
        wanted = whole(pictures)
        assert torch.equal(adapted(pictures), wanted)
        assert torch.equal(merged(architecture, folder / kind, folder / "whole")(pictures), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_trained_it_computes_what_the_merged_model_does(
    made: tuple[Architecture, Path], kind: str, tmp_path: Path
) -> None:
    architecture, folder = made
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
    pictures = Pictures(images, tuple(index % 7 for index in range(8)), tuple(f"L{index}" for index in range(8)))
    network = networks.load(architecture, folder / kind, trunk=folder / "whole")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    local = LocalTraining(batch_size=4, image_size=64, learning_rate=0.05)
    training.train(network, pictures, local, 5, torch.device("cpu"))
    after = networks.tensors(network)

    # The update has the base's tensors, and every one that is no counter moved.
    file = TensorFile.open(folder / kind)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in after.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in file.header.tensors.items()
    }
    moved = {name for name, tensor in after.items() if not torch.equal(torch.from_numpy(tensor), before[name])}
    assert {name for name in after if "lora_b" in name or name.endswith("running_mean")} <= moved

    said = Adapter.of(file.header.metadata)
    assert said is not None
    tensorfile.write(tmp_path / "model", after, said.metadata())
    Networks(1, 1, 10**6).check(architecture, tmp_path / "model", folder / "whole")
    network.eval()
    other = merged(architecture, tmp_path / "model", folder / "whole")
    with torch.no_grad():
        inputs = torch.randn(4, 3, 64, 64, generator=generator)
        logits = network(inputs)
        assert not torch.equal(logits, networks.load(architecture, folder / "whole").eval()(inputs))
        assert (other(inputs) - logits).abs().max() <= 1e-5 * max(1.0, float(logits.abs().max()))


def test_kernels_and_norms_are_those_that_the_networks_modules_say(made: tuple[Architecture, Path]) -> None:
    """By modules of torch, rather than by names and shapes."""
    architecture, folder = made
    network = networks.build(architecture)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    kernels = {
        name: module.weight.shape
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name != linear[-1]
    }
    depthwise = {
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    rest = {name for name in network.state_dict() if name.rpartition(".")[0] not in kernels}
    assert set(TensorFile.open(folder / "norms")) == rest
    found = set(layout(architectures.expected(architecture), "lora:1"))
    assert found - rest == {f"{name}.lora_{which}" for name in kernels.keys() - depthwise for which in "ab"}

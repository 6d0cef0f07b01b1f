"""The measurement of adapters: bytes are those of files, and every run starts from the same network."""

from __future__ import annotations

import torch
from concilia_client_node import networks
from concilia_kit.adapters import layout
from concilia_kit.wire.adapter import rank_of
from concilia_kit.wire.training import Architecture

from benchmarks import adapters

NET = Architecture.RESNET18


def test_bytes_are_those_of_the_tensors_and_a_header() -> None:
    full, norms, lora = adapters.measure(NET, [adapters.FULL, "norms", "lora:2"])
    specs = adapters.specs_of(networks.build(NET))
    for row, held in ((full, specs), (norms, layout(specs, "norms")), (lora, layout(specs, "lora:2"))):
        tensors = sum(spec.nbytes for spec in held.values())
        assert tensors < row["updates"]["none"] <= row["model"] < tensors + 200 * len(held)
        assert row["updates"]["float16"] < 0.6 * row["updates"]["none"]
    assert (full["share"], full["trunk"]) == (1.0, 0)
    assert norms["share"] < lora["share"] < 0.02
    assert norms["trunk"] == lora["trunk"] == full["model"]


def test_every_kind_starts_as_the_whole_network_does() -> None:
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for kind in (adapters.FULL, *adapters.KINDS):
        torch.manual_seed(0)
        network = adapters.adapted(networks.build(NET), kind, 1)
        assert kind == adapters.FULL or rank_of(kind) == 0 or any("lora_a" in n for n, _ in network.named_parameters())
        assert all(parameter.requires_grad for parameter in network.parameters())
        with torch.no_grad():
            outputs.append(network.eval()(inputs))
    assert all(torch.equal(each, outputs[0]) for each in outputs)

"""Networks of timm by name: which names a job may have, and what of them is trained here."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from concilia_kit import timm_networks
from concilia_kit.timm_networks import Unusable
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.training import Architecture, architecture_of
from pydantic import ValidationError

META = torch.device("meta")
RGB = torch.zeros(2, 3, 64, 64)


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:mobilenetv3_small_100", "timm:resnet18.a1_in1k"])
def test_a_job_names_a_network_of_timm(name: str) -> None:
    assert architecture_of(name) == name
    spec = JobSpec(name="lesions", initial="0" * 64, architecture=name)
    assert spec.model_dump(mode="json")["architecture"] == name
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("architecture", Architecture)
def test_the_built_in_ones_are_what_they_were(architecture: Architecture) -> None:
    assert architecture_of(architecture.value) is architecture
    spec = JobSpec.model_validate({"name": "lesions", "initial": "0" * 64, "architecture": architecture.value})
    assert spec.architecture is architecture


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "timm:",
        "timm:" + "x" * 61,
        "timm:ResNet",
        "timm:hf-hub:someone/something",
        "hf-hub:someone/something",
        "timm:../resnet18",
        "timm:local-dir:/etc",
        "timm:resnet18\n",
        "TIMM:resnet18",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        architecture_of(name)
    with pytest.raises(ValidationError):
        JobSpec(name="lesions", initial="0" * 64, architecture=name)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("timm:resnet10t", "fc"),
        ("timm:mobilenetv3_small_050", "classifier"),
        ("timm:convnext_atto", "head.fc"),
        ("timm:vit_tiny_patch16_224", "head"),
        ("timm:swin_tiny_patch4_window7_224", "head.fc"),
    ],
)
def test_heads_have_the_jobs_classes_and_are_found(name: str, head: str) -> None:
    outline = timm_networks.outline(timm, META, name, 5)
    assert {tensor.device.type for tensor in outline.state_dict().values()} == {"meta"}
    assert timm_networks.head_of(outline, 5) == head
    assert outline.get_submodule(head).weight.shape[0] == 5
    linear = [name for name, module in outline.named_modules() if isinstance(module, torch.nn.Linear)]
    assert linear[-1] == head  # as training, adapters and FedRep find it


def test_a_network_is_built_as_it_is_outlined_and_answers() -> None:
    built = timm_networks.build(timm, META, "timm:resnet10t", 3)
    outline = timm_networks.outline(timm, META, "timm:resnet10t", 3)
    assert [(name, tensor.shape) for name, tensor in built.state_dict().items()] == [
        (name, tensor.shape) for name, tensor in outline.state_dict().items()
    ]
    assert built.eval()(RGB).shape == (2, 3)


@pytest.mark.parametrize("name", ["timm:no_such_network", "timm:resnet18.no_such_tag"])
def test_what_timm_has_not_is_said_in_one_sentence(name: str) -> None:
    with pytest.raises(Unusable) as raised:
        timm_networks.outline(timm, META, name, 7)
    said = str(raised.value)
    assert said.startswith(f"timm {timm.__version__}")
    assert name.removeprefix("timm:") in said
    assert "\n" not in said


def test_a_network_with_two_heads_is_refused() -> None:
    with pytest.raises(Unusable, match="do not come from one linear layer at its end"):
        timm_networks.outline(timm, META, "timm:deit_tiny_distilled_patch16_224", 7)


def test_a_network_too_large_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unusable, match=r"has 3\.\d GiB of weights; 2 GiB are the most"):
        timm_networks.build(timm, META, "timm:vit_giant_patch14_224", 7)
    monkeypatch.setattr(timm_networks, "MOST_BYTES", 10**6)
    with pytest.raises(Unusable, match="of weights"):
        timm_networks.build(timm, META, "timm:resnet10t", 7)


def test_no_weights_are_ever_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    plain = timm.create_model

    def create(name: str, **given: Any) -> Any:
        asked.append(given)
        return plain(name, **given)

    monkeypatch.setattr(timm, "create_model", create)
    timm_networks.build(timm, META, "timm:resnet10t", 7)
    assert [given["pretrained"] for given in asked] == [False, False]
    assert all(given.keys() == {"pretrained", "num_classes"} for given in asked)


def test_sizes_and_tables_that_a_network_has_of_its_own() -> None:
    free = timm_networks.outline(timm, META, "timm:resnet10t", 7)
    fixed = timm_networks.outline(timm, META, "timm:vit_tiny_patch16_224", 7)
    assert (timm_networks.side_of(free), timm_networks.side_of(fixed)) == (None, 224)
    assert timm_networks.side_of(torch.nn.Linear(1, 1)) is None
    swin = timm_networks.outline(timm, META, "timm:swin_tiny_patch4_window7_224", 7)
    assert timm_networks.has_own_buffers(swin)
    assert not timm_networks.has_own_buffers(free)

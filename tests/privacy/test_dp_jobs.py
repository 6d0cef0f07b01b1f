"""Privacy as jobs ask for it, updates tell of it, and pages and cards show it; networks that it can train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from concilia_client_node import networks
from concilia_kit import digests, tensorfile
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.jobs import JobSpec, RoundView
from concilia_kit.wire.privacy import Privacy, Spent
from concilia_kit.wire.training import Architecture, UpdateMetrics
from concilia_model import architectures, attention, pretrained
from concilia_model.errors import WeightsUnavailable
from pydantic import ValidationError
from torch import nn

GROUPED = [Architecture.RESNET18_GN, Architecture.MOBILENET_V2_GN]
SPENT = Spent(epsilon=2.5, delta=1e-5, noise=1.0, clip=1.0, rate=0.1, steps=10)
COUNTS: dict[str, Any] = {
    "images": 10,
    "lesions": 5,
    "skipped_images": 0,
    "epochs": 1,
    "seconds_download": 0.0,
    "seconds_training": 1.0,
    "seconds_upload": 0.0,
    "bytes_download": 1,
    "bytes_upload": 1,
}


def job(**changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"name": "j", "initial": "0" * 64, "privacy": {"noise": 1.0}, "local": {"balance": "none"}}
    return asked | changes


def test_a_job_may_ask_for_privacy_and_its_words_are_unchanged_where_it_does_not() -> None:
    spec = JobSpec.model_validate(job())
    assert spec.privacy == Privacy(noise=1.0, clip=1.0, delta=1e-5)
    assert "privacy" not in JobSpec.model_validate(job(privacy=None)).model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": {}}, "balance must be none with privacy"),
        *[({"local": {"balance": each}}, "balance must be none") for each in ("loss", "sampling", "logit")],
        ({"local": {"balance": "none", "mixup": 0.2}}, "no mixup with privacy"),
        ({"local": {"balance": "none", "first_loss": True}}, "no privacy with qfedavg"),
        ({"strategy": {"name": "qfedavg"}}, "no privacy with qfedavg"),
        ({"strategy": {"name": "class_balanced"}}, "no privacy with class_balanced"),
        ({"local": {"balance": "none", "class_counts": True}}, "no privacy with class_balanced"),
        ({"privacy": {"noise": 0}}, "greater than or equal to 0.1"),
        ({"privacy": {"noise": 1, "clip": 0}}, "greater than 0"),
        ({"privacy": {"noise": 1, "delta": 0.5}}, "less than 0.01"),
    ],
)
def test_what_privacy_cannot_go_with_is_refused_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        JobSpec.model_validate(job(**changes))
    JobSpec.model_validate(job(**changes) | {"privacy": None})


def test_an_update_with_privacy_tells_what_it_cost_and_no_loss_and_signs_both() -> None:
    told = UpdateMetrics(**COUNTS, privacy=SPENT).model_dump(mode="json")
    assert {"loss", "accuracy", "first_loss"} & told.keys() == set()
    assert told["privacy"]["epsilon"] == 2.5
    cheaper = UpdateMetrics(**COUNTS, privacy=SPENT.model_copy(update={"epsilon": 0.1})).model_dump(mode="json")
    assert digests.of_json(told) != digests.of_json(cheaper)


def test_plain_updates_digests_are_what_they_were() -> None:
    plain = UpdateMetrics(loss=0.5, accuracy=0.25, **COUNTS).model_dump(mode="json")
    assert list(plain) == ["loss", "accuracy", *COUNTS]


def test_a_round_tells_what_it_cost_whom() -> None:
    fields: dict[str, Any] = dict.fromkeys(RoundView.model_fields) | {
        "round": 1,
        "accepted": 1,
        "rejected": (),
        "sites": (),
        "progress": {},
        "bytes_moved": 0,
        **{f"seconds_{phase}": 0.0 for phase in ("training", "moving", "chain", "folding")},
    }
    address = "0x" + "0" * 39 + "1"
    assert "privacy" not in RoundView.model_validate(fields | {"privacy": {}}).model_dump(mode="json")
    assert RoundView.model_validate(fields | {"privacy": {address: SPENT}}).model_dump(mode="json")["privacy"] == {
        address: SPENT.model_dump(mode="json")
    }


# ------------------------------------------------------------------------------------------------ group normalisation


@pytest.mark.parametrize("architecture", GROUPED)
def test_the_services_mean_the_same_network_which_has_no_batch_normalisation(
    architecture: Architecture, tmp_path: Path
) -> None:
    theirs = architectures.fresh(architecture, 3)
    tensorfile.write(tmp_path / "w", theirs)
    ours = networks.load(architecture, tmp_path / "w")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in ours.modules())
    assert {
        name: (each.dtype, each.shape) for name, each in TensorFile.open(tmp_path / "w").header.tensors.items()
    } == {name: (spec.dtype, spec.shape) for name, spec in architectures.expected(architecture).items()}
    predicting = architectures.empty(architecture)
    predicting.load_state_dict({name: torch.from_numpy(np.array(each)) for name, each in theirs.items()}, assign=True)
    batch = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = ours.eval()(batch)
        found, maps = attention.look(predicting, architecture, batch)
    assert torch.allclose(wanted, predicting(batch), atol=1e-6)
    assert torch.equal(found, predicting(batch))
    assert maps.shape[0] == 7


@pytest.mark.parametrize("architecture", GROUPED)
def test_it_is_the_network_that_opacus_makes_of_the_usual_one(architecture: Architecture) -> None:
    from opacus.validators import ModuleValidator

    usual = Architecture(architecture.torchvision)
    assert (usual.grouped, architecture.grouped) == (False, True)
    fixed = ModuleValidator.fix(networks.build(usual))
    ours = networks.build(architecture)
    assert {name: each.shape for name, each in fixed.state_dict().items()} == {
        name: each.shape for name, each in ours.state_dict().items()
    }
    groups = [
        [module.num_groups for module in each.modules() if isinstance(module, nn.GroupNorm)] for each in (fixed, ours)
    ]
    assert groups[0] == groups[1]
    assert ModuleValidator.is_valid(ours.train())


def test_there_are_no_published_weights_of_it() -> None:
    with pytest.raises(WeightsUnavailable, match="no ImageNet weights of resnet18_gn"):
        pretrained.torchvision_url(Architecture.RESNET18_GN)
    assert "resnet18" in pretrained.torchvision_url(Architecture.RESNET18)

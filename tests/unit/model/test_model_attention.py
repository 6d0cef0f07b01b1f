"""Where the network looked: against Grad-CAM by backward pass, and as a prediction tells it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from concilia_kit.lesions import CLASSES
from concilia_kit.wire.training import Architecture
from concilia_model import architectures, attention
from PIL import Image

JOB = "1" * 64
ALICE = "0x" + "a1" * 20
LAST_FEATURES = {
    Architecture.RESNET50: "layer4",
    Architecture.RESNET18: "layer4",
    Architecture.MOBILENET_V2: "features",
    Architecture.EFFICIENTNET_B0: "features",
    Architecture.CONVNEXT_TINY: "features",
    Architecture.RESNET18_GN: "layer4",
    Architecture.MOBILENET_V2_GN: "features",
}
LINEAR = [architecture for architecture in Architecture if architecture is not Architecture.CONVNEXT_TINY]


def network(architecture: Architecture, seed: int = 0) -> torch.nn.Module:
    tensors = {name: torch.from_numpy(array) for name, array in architectures.fresh(architecture, seed).items()}
    model = architectures.empty(architecture)
    model.load_state_dict(tensors, assign=True)
    return model


def batch(side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def grad_cam(model: torch.nn.Module, layer: str, given: torch.Tensor) -> list[torch.Tensor]:
    """Equations 1 and 2 of Selvaraju et al.: for each class, the feature map's channels weighted by the class score's
    gradient, averaged over places, and what is positive of their sum."""
    kept: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    scores = model(given)[0]
    hook.remove()
    maps = []
    for score in scores:
        (gradient,) = torch.autograd.grad(score, kept[0], retain_graph=True)
        weights = gradient[0].double().mean(dim=(1, 2))
        maps.append((weights[:, None, None] * kept[0][0].double()).sum(0).relu().detach())
    return maps


@pytest.mark.parametrize("architecture", Architecture)
def test_maps_are_proportional_to_grad_cam(architecture: Architecture) -> None:
    model = network(architecture)
    given = batch(160)
    with torch.inference_mode():
        _, maps = attention.look(model, architecture, given)
    assert maps.shape == (len(CLASSES), 5, 5)
    expected = grad_cam(model, LAST_FEATURES[architecture], given)
    speaking = 0
    for mine, theirs in zip(maps, expected, strict=True):
        if theirs.max() > 0:
            speaking += 1
            assert mine.max() == 1
            torch.testing.assert_close(mine, theirs / theirs.max(), rtol=1e-4, atol=1e-5)
            assert mine.std() > 0.01
        else:
            assert not mine.any()
    assert speaking >= 3


@pytest.mark.parametrize("architecture", Architecture)
@pytest.mark.parametrize("side", [32, 64, 100])
def test_logits_are_the_models_own_to_the_last_bit(architecture: Architecture, side: int) -> None:
    model = network(architecture, seed=1)
    with torch.inference_mode():
        for seed in range(3):
            given = batch(side, seed)
            assert torch.equal(attention.look(model, architecture, given)[0], model(given))


@pytest.mark.parametrize("architecture", Architecture)
def test_a_class_that_nothing_speaks_for_has_an_empty_map(architecture: Architecture) -> None:
    model = network(architecture)
    with torch.inference_mode():
        model.get_parameter(f"{architectures.HEADS[architecture]}.weight")[2] = 0
        _, maps = attention.look(model, architecture, batch(64))
    assert not maps[2].any()
    assert maps.isfinite().all()
    assert maps.min() >= 0


@pytest.mark.parametrize("architecture", LINEAR)
def test_of_a_linear_head_maps_are_the_features_weighted_by_its_rows_to_the_last_bit(
    architecture: Architecture,
) -> None:
    model = network(architecture)
    kept: list[torch.Tensor] = []
    model.get_submodule(LAST_FEATURES[architecture]).register_forward_hook(lambda _m, _i, output: kept.append(output))
    given = batch(100)
    with torch.inference_mode():
        _, maps = attention.look(model, architecture, given)
        weights = model.get_parameter(f"{architectures.HEADS[architecture]}.weight")
        evidence = torch.einsum("kc,crs->krs", weights.double(), kept[0][0].double()).relu()
        largest = evidence.amax(dim=(1, 2), keepdim=True)
        assert torch.equal(maps, torch.where(largest > 0, evidence / largest, 0.0))


@pytest.mark.parametrize("architecture", Architecture)
def test_a_head_of_random_weights_looks_elsewhere(architecture: Architecture) -> None:
    """The first step of the cascading randomisation of Adebayo et al., "Sanity Checks for Saliency Maps" (2018),
    section 3.1: a map that stayed what it was would show the picture, and not what was learnt."""
    model, other = network(architecture), network(architecture)
    head = other.get_parameter(f"{architectures.HEADS[architecture]}.weight")
    with torch.inference_mode():
        drawn = torch.randn(head.shape, generator=torch.Generator().manual_seed(7)) * head.std()
        head.copy_(drawn)
        given = batch(224)
        maps, elsewhere = (attention.look(some, architecture, given)[1] for some in (model, other))
    alike = [
        float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])
        for one, two in zip(maps, elsewhere, strict=True)
        if one.any() and two.any()
    ]
    assert len(alike) >= 2
    assert sum(alike) / len(alike) < 0.7


@pytest.mark.parametrize("architecture", Architecture)
def test_there_are_as_many_maps_as_classes(architecture: Architecture) -> None:
    model = architectures.empty(architecture, classes=3)
    tensors = architectures.fresh(architecture, 0, classes=3)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, assign=True)
    with torch.inference_mode():
        logits, maps = attention.look(model, architecture, batch(64))
    assert logits.shape == (1, 3)
    assert maps.shape == (3, 2, 2)


def picture() -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (60, 90, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


async def predict(service: Any, **query: str) -> httpx.Response:
    files = {"image": ("lesion-of-anna.png", picture(), "image/png")}
    return await service.http.post("/v1/predictions", files=files, params=query, headers=service.clinician)


async def test_a_prediction_with_attention(
    service: Any, ledger_job: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"architecture": "mobilenet_v2", "weights": "random"}
    digest = (await service.http.post("/v1/initial-models", json=asked, headers=service.admin)).json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {ALICE: None})])
    named = {"job": JOB, "digest": digest, "architecture": "mobilenet_v2", "image_size": 96}
    await service.http.post("/v1/models", json=named, headers=service.coordinator)
    stored = service.files()
    with caplog.at_level(logging.DEBUG):
        answer = await predict(service, attention="true")
    told = answer.json()
    assert [item["code"] for item in told["attention"]] == list(CLASSES)
    grids = np.array([item["grid"] for item in told["attention"]])
    assert grids.shape == (len(CLASSES), 3, 3)
    assert grids.min() >= 0
    assert {float(grid.max()) for grid in grids} <= {0.0, 1.0}
    assert (grids == grids.round(3)).all()
    assert grids.any()
    for query in ({}, {"attention": "false"}):
        without = (await predict(service, **query)).json()
        assert without["attention"] is None
        assert without["probabilities"] == told["probabilities"]  # to the last bit
    assert service.files() == stored
    assert "anna" not in caplog.text
    assert "anna" not in answer.text
    assert picture()[:16].hex() not in json.dumps(told) + caplog.text
    refused = await predict(service, attention="perhaps")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")

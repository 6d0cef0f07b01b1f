"""Networks of timm at this service: made, checked, looked at, and refused where timm is not there or has none such."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import TensorFile
from concilia_model import architectures, attention
from concilia_model.errors import ArchitectureUnavailable, WeightsDoNotFit, WeightsUnavailable
from concilia_model.networks import Networks
from PIL import Image

NET = "timm:resnet10t"
MOBILE = "timm:mobilenetv3_small_050"  # its head works on the pooled features, in place
SWIN = "timm:swin_tiny_patch4_window7_224"  # its channels come last, and it has tables that no file holds
VIT = "timm:vit_tiny_patch16_224"
JOB = "1" * 64
ALICE = "0x" + "a1" * 20


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)


def network(name: str, seed: int = 0) -> torch.nn.Module:
    tensors = {key: torch.from_numpy(array.copy()) for key, array in architectures.fresh(name, seed).items()}
    model = architectures.empty(name)
    model.load_state_dict(tensors, assign=True)
    return model


def batch(side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_fresh_weights_are_the_seeds_and_leave_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (architectures.fresh(NET, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["fc.weight"], other["fc.weight"])
    expected = architectures.expected(NET)
    assert {name: (array.dtype, array.shape) for name, array in one.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in expected.items()
    }
    assert architectures.expected(NET, 3)["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize(("name", "side"), [(NET, 64), (MOBILE, 64), (SWIN, 224), (VIT, 224)])
def test_logits_are_the_models_own_to_the_last_bit(name: str, side: int) -> None:
    model = network(name)
    with torch.inference_mode():
        for seed in range(2):
            given = batch(side, seed)
            assert torch.equal(attention.look(model, name, given)[0], model(given))


@pytest.mark.parametrize(("name", "side", "map_"), [(NET, 160, 5), (MOBILE, 160, 5), (SWIN, 224, 7)])
def test_maps_are_proportional_to_grad_cam(name: str, side: int, map_: int) -> None:
    model: Any = network(name)
    given = batch(side)
    with torch.inference_mode():
        _, maps = attention.look(model, name, given)
    assert maps is not None
    assert maps.shape == (len(CLASSES), map_, map_)
    features = model.forward_features(given)
    last = features.shape[-1] == model.num_features and features.shape[1] != model.num_features
    speaking = 0
    for mine, score in zip(maps, model.forward_head(features.clone())[0], strict=True):
        (gradient,) = torch.autograd.grad(score, features, retain_graph=True)
        places, channels = ((1, 2), 3) if last else ((2, 3), 1)
        weighted = features.double() * gradient.double().mean(places, keepdim=True)
        theirs = weighted.sum(channels)[0].relu().detach()
        if theirs.max() > 0:
            speaking += 1
            torch.testing.assert_close(mine, theirs / theirs.max(), rtol=1e-4, atol=1e-5)
        else:
            assert not mine.any()
    assert speaking >= 2


def test_a_network_of_patches_has_no_maps() -> None:
    with torch.inference_mode():
        logits, maps = attention.look(network(VIT), VIT, batch(224))
    assert maps is None
    assert logits.shape == (1, len(CLASSES))


def test_weights_are_checked_and_heads_for_other_classes_replaced(tmp_path: Path) -> None:
    networks = Networks(1, 1, 10**6)
    networks.make_initial(NET, 1, tmp_path / "seven")
    networks.check(NET, tmp_path / "seven")
    with pytest.raises(WeightsDoNotFit):
        networks.check(MOBILE, tmp_path / "seven")
    made = networks.make_initial(NET, 1, tmp_path / "three", offered=tmp_path / "seven", classes=3)
    assert "head for 7 classes replaced" in made.origin
    assert made.fresh == 2
    assert np.array_equal(
        TensorFile.open(tmp_path / "three").tensor("conv1.0.weight"),
        TensorFile.open(tmp_path / "seven").tensor("conv1.0.weight"),
    )


def test_no_weights_are_published_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be connected to")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    networks = Networks(1, 1, 10**6)
    with pytest.raises(WeightsUnavailable, match=f"no weights are downloaded for {NET}"):
        networks.release(NET)
    networks.make_initial(NET, 1, tmp_path / "w")


@pytest.mark.usefixtures("without_timm")
@pytest.mark.parametrize("call", [architectures.empty, architectures.expected, architectures.head_of])
def test_without_the_extra_one_sentence_names_it(call: Callable[[Any], Any]) -> None:
    with pytest.raises(ArchitectureUnavailable) as raised:
        call(NET)
    assert raised.value.detail == (
        "timm:resnet10t is a network of timm, which is not installed here: pip install 'concilia-model[timm]'"
    )


async def initial(service: Any, **request: str) -> httpx.Response:
    body = {"architecture": NET, "weights": "random", **request}
    answer: httpx.Response = await service.http.post("/v1/initial-models", json=body, headers=service.admin)
    return answer


async def test_it_is_made_registered_and_asked(service: Any, ledger_job: Callable[..., Any]) -> None:
    made = (await initial(service)).json()
    assert made["architecture"] == NET
    service.ledger.jobs[JOB] = ledger_job(JOB, made["digest"], [(made["digest"], {ALICE: None})])
    body = {"job": JOB, "digest": made["digest"], "architecture": NET, "image_size": 96}
    registered = await service.http.post("/v1/models", json=body, headers=service.coordinator)
    assert (registered.status_code, registered.json()["architecture"]) == (201, NET)
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "PNG")
    files = {"image": ("lesion.png", out.getvalue(), "image/png")}
    answer = await service.http.post(
        "/v1/predictions", files=files, params={"attention": "true"}, headers=service.clinician
    )
    told = answer.json()
    assert sum(each["probability"] for each in told["probabilities"]) == pytest.approx(1)
    assert np.array([each["grid"] for each in told["attention"]]).shape == (len(CLASSES), 3, 3)


async def test_what_cannot_be_had_is_refused_in_a_sentence(service: Any) -> None:
    unknown = await initial(service, architecture="timm:no_such_network")
    assert (unknown.status_code, unknown.json()["code"]) == (422, "architecture_unavailable")
    assert "has no network 'no_such_network'" in unknown.json()["detail"]
    imagenet = await initial(service, weights="imagenet")
    assert (imagenet.status_code, imagenet.json()["code"]) == (400, "weights_unavailable")
    elsewhere = await initial(service, architecture="timm:hf-hub:someone/something")
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (422, "invalid_request")

"""Models that tell other classes apart than HAM10000's: their heads, their registration, and their answers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from concilia_kit.classification import LESIONS, Classification, Disease
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.training import Architecture
from concilia_model import architectures, images
from PIL import Image

JOB = "1" * 64
ALICE = "0x" + "a1" * 20
CHEST = Classification(
    name="chest",
    classes=tuple(Disease(code=code, name=code.title()) for code in ("normal", "pneumonia", "tuberculosis")),
    critical="tuberculosis",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)


def picture() -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (28, 28), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


async def initial(service: Any, **request: Any) -> httpx.Response:
    body = {"architecture": "mobilenet_v2", "weights": "random", **request}
    answer: httpx.Response = await service.http.post("/v1/initial-models", json=body, headers=service.admin)
    return answer


async def register(service: Any, digest: str, classification: Classification = CHEST) -> httpx.Response:
    body = {"job": JOB, "digest": digest, "architecture": "mobilenet_v2", "image_size": 32}
    told = {} if classification == LESIONS else {"classification": classification.model_dump(mode="json")}
    answer: httpx.Response = await service.http.post("/v1/models", json=body | told, headers=service.coordinator)
    return answer


async def predict(service: Any, **query: str) -> dict[str, Any]:
    files = {"image": ("x.png", picture(), "image/png")}
    answer = await service.http.post("/v1/predictions", files=files, params=query, headers=service.clinician)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_initial_weights_have_as_many_outputs_as_are_asked_for(service: Any) -> None:
    made = (await initial(service, classes=3)).json()
    stored = TensorFile.open(service.settings.directory / made["digest"][:2] / made["digest"], service.keys)
    fresh = architectures.fresh(Architecture.MOBILENET_V2, 0, 3)
    assert stored.tensor("classifier.1.weight").shape == (3, 1280)
    assert all(np.array_equal(stored.tensor(name), fresh[name]) for name in fresh)
    again = (await initial(service, weights="file", file=made["digest"])).json()
    assert again["origin"].endswith("head for 3 classes replaced")
    assert (await initial(service, classes=7)).json() == (await initial(service)).json()
    for wrong in (1, 101, "3"):
        assert (await initial(service, classes=wrong)).status_code == 422


async def test_a_version_answers_in_its_jobs_classes(service: Any, ledger_job: Callable[..., Any]) -> None:
    digest = (await initial(service, classes=3)).json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {ALICE: None})])
    registered = await register(service, digest)
    assert registered.status_code == 201, registered.text
    assert registered.json()["classification"] == CHEST.model_dump(mode="json")
    assert (await register(service, digest)).json() == registered.json()
    listed = (await service.http.get("/v1/models", headers=service.clinician)).json()
    assert listed == [registered.json()]
    answer = await predict(service, attention="true")
    assert [(each["code"], each["name"]) for each in answer["probabilities"]] == [
        ("normal", "Normal"),
        ("pneumonia", "Pneumonia"),
        ("tuberculosis", "Tuberculosis"),
    ]
    assert [each["code"] for each in answer["attention"]] == list(CHEST.codes)
    assert math.fsum(each["probability"] for each in answer["probabilities"]) == pytest.approx(1, abs=1e-9)
    # What the network saw was normalised as declared.
    tensors = architectures.fresh(Architecture.MOBILENET_V2, 0, 3)
    model = architectures.empty(Architecture.MOBILENET_V2, 3)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, assign=True)
    batch = images.prepare(images.decode(picture(), 10**6), 32, CHEST)
    with torch.inference_mode():
        expected = model(batch)[0].double().softmax(0)
    told = torch.tensor([each["probability"] for each in answer["probabilities"]], dtype=torch.float64)
    torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-7)


async def test_what_was_registered_for_other_classes_is_not_registered_again(
    service: Any, ledger_job: Callable[..., Any]
) -> None:
    digest = (await initial(service, classes=3)).json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {ALICE: None})])
    wrong = await register(service, digest, LESIONS)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "weights_do_not_fit")
    assert (await register(service, digest)).status_code == 201
    other = await register(service, digest, CHEST.model_copy(update={"critical": "normal"}))
    assert (other.status_code, other.json()["code"]) == (409, "already_registered")
    assert "for chest" in other.json()["detail"]


def test_pictures_are_prepared_as_a_classification_has_them() -> None:
    shown = images.decode(picture(), 10**6)
    plain, other = images.prepare(shown, 32), images.prepare(shown, 32, CHEST)
    mean, std = torch.tensor(LESIONS.mean).view(3, 1, 1), torch.tensor(LESIONS.std).view(3, 1, 1)
    torch.testing.assert_close(other * 0.25 + 0.5, plain * std + mean)

"""Bytes and predictions as `/metrics` shows them."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from concilia_model.service import PICTURES_AT_ONCE
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

JOB = "5a" * 32
ALICE = "0x00000000000000000000000000000000000000A1"


async def values(service: Any) -> dict[tuple[str, ...], float]:
    text = (await service.http.get("/metrics")).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_bytes_in_and_out(service: Any, safetensors: Callable[..., tuple[str, bytes]]) -> None:
    digest, content = safetensors({"a": np.arange(5000, dtype=np.float32)})
    path = f"/v1/artifacts/{digest}"
    assert (await service.put("0" * 64, content, service.alice)).status_code >= 400
    assert ("concilia_artifact_bytes_total", "in") not in await values(service)
    assert (await service.put(digest, content, service.alice)).status_code == 201
    assert (await service.put(digest, content, service.alice)).status_code == 200  # known: not read again
    assert (await values(service))["concilia_artifact_bytes_total", "in"] == len(content)
    assert (await service.http.get(path, headers=service.alice)).content == content
    part = {**service.alice, "Range": "bytes=100-199"}
    assert (await service.http.get(path, headers=part)).content == content[100:200]
    assert (await service.http.head(path, headers=service.alice)).status_code == 200
    assert (await service.http.get(path, headers={**service.alice, "Range": "bytes=9-1"})).status_code == 416
    assert (await values(service))["concilia_artifact_bytes_total", "out"] == len(content) + 100


async def test_predictions_by_outcome(service: Any, ledger_job: Callable[..., Any]) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), "salmon").save(picture, "JPEG")

    async def predict(content: bytes) -> int:
        files = {"image": ("lesion-of-somebody.jpg", content, "image/jpeg")}
        answer = await service.http.post("/v1/predictions", files=files, headers=service.clinician)
        return int(answer.status_code)

    assert await predict(picture.getvalue()) >= 400
    wanted = {"architecture": "mobilenet_v2", "weights": "random"}
    made = await service.http.post("/v1/initial-models", json=wanted, headers=service.admin)
    digest = made.json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {ALICE: None})])
    body = {"job": JOB, "digest": digest, "architecture": "mobilenet_v2", "image_size": 32}
    assert (await service.http.post("/v1/models", json=body, headers=service.coordinator)).status_code == 201
    assert await predict(picture.getvalue()) == 200
    assert await predict(b"no picture") >= 400

    found = await values(service)
    outcomes = {key[1]: count for key, count in found.items() if key[0] == "concilia_predictions_total"}
    assert outcomes == {"no_model": 1, "ok": 1, "image_unreadable": 1}
    assert found[("concilia_prediction_seconds_count",)] == 1
    text = (await service.http.get("/metrics")).text
    assert "somebody" not in text
    assert digest not in text


async def test_pictures_beyond_the_places_are_refused_unread(serve: Callable[..., Any], settings: Any) -> None:
    running = serve(settings)
    async with running as service:
        await _refused_unread(service, running.app.state.services.predictions)


async def _refused_unread(service: Any, predictions: Any) -> None:
    headers = {**service.clinician, "Content-Type": "multipart/form-data; boundary=b"}

    async def send() -> tuple[int, str, str]:
        answer = await service.http.post("/v1/predictions", content=b"no picture", headers=headers)
        return answer.status_code, answer.json()["code"], answer.headers.get("retry-after", "")

    with ExitStack() as taken:
        for _ in range(PICTURES_AT_ONCE):
            taken.enter_context(predictions.place())
        assert (await send())[:2] == (429, "too_busy")
        assert (await send())[2]
    assert (await send())[:2] == (422, "image_unreadable")

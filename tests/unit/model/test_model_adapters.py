"""Adapters as this service makes, stores, gives out, registers and predicts with them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from concilia_kit.adapters import layout
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.adapter import ADAPTER, TRUNK, Adapter
from concilia_kit.wire.training import Architecture
from concilia_model import adapters, architectures
from concilia_model.adapters import merged
from PIL import Image

SIDE = 32
JOB = "1" * 64
ALICE = "0x" + "a1" * 20
NET = Architecture.MOBILENET_V2
EXPECTED = architectures.expected(NET)
TRUNK_TENSORS = architectures.fresh(NET, 0)
Make = Callable[..., tuple[str, bytes]]


async def initial(service: Any, **request: Any) -> httpx.Response:
    body = {"architecture": "mobilenet_v2", "weights": "random", **request}
    return await service.http.post("/v1/initial-models", json=body, headers=service.admin)


async def register(service: Any, digest: str, job: str = JOB) -> httpx.Response:
    body = {"job": job, "digest": digest, "architecture": "mobilenet_v2", "image_size": SIDE}
    return await service.http.post("/v1/models", json=body, headers=service.coordinator)


async def predict(service: Any, **query: str) -> httpx.Response:
    noise = np.random.default_rng(1).integers(0, 255, (60, 90, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    files = {"image": ("lesion.png", out.getvalue(), "image/png")}
    return await service.http.post("/v1/predictions", files=files, params=query, headers=service.clinician)


def opened(service: Any, digest: str) -> TensorFile:
    return TensorFile.open(service.settings.directory / digest[:2] / digest, service.keys)


def trained(service: Any, digest: str, make: Make, **metadata: str) -> tuple[str, bytes]:
    """A model as rounds may leave one over the same trunk: every floating tensor a little off."""
    file, rng = opened(service, digest), np.random.default_rng(3)
    tensors = {name: np.array(file.tensor(name)) for name in file}
    for name, tensor in tensors.items():
        if tensor.dtype == np.float32 and "running_var" not in name:
            tensors[name] = tensor + rng.normal(scale=0.05, size=tensor.shape).astype(np.float32)
    return make(tensors, {**file.header.metadata, **metadata})


# ------------------------------------------------------------------------------------------------------- making them


@pytest.mark.parametrize("kind", ["norms", "lora:4"])
async def test_an_adapter_is_made_over_the_initial_model(service: Any, kind: str) -> None:
    plain = (await initial(service)).json()
    assert not {"adapter", "trunk"} & plain.keys()
    answer = await initial(service, adapter=kind)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["adapter"], made["trunk"]) == (kind, plain["digest"])
    assert made == (await initial(service, adapter=kind)).json()
    info = (await service.http.get(f"/v1/artifacts/{made['digest']}/info", headers=service.alice)).json()
    assert (info["trunk"], info["adapter"]) == (plain["digest"], kind)
    assert info["origin"] == made["origin"] == f"adapter {kind} (seed 0) over {plain['digest']}: {plain['origin']}"
    assert info["tensors"] == made["loaded_tensors"] + made["fresh_tensors"]
    file = opened(service, made["digest"])
    assert Adapter.of(file.header.metadata) == Adapter(plain["digest"], kind)
    assert {name: file.header.tensors[name].shape for name in file} == {
        name: spec.shape for name, spec in layout(EXPECTED, kind).items()
    }
    whole = {name: TRUNK_TENSORS[name] for name in TRUNK_TENSORS}
    again = merged(whole, {name: file.tensor(name) for name in file})
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_a_seed_decides_what_is_drawn_and_nothing_else_does() -> None:
    one, fresh = adapters.fresh(TRUNK_TENSORS, EXPECTED, "lora:4", 0)
    two, _ = adapters.fresh(TRUNK_TENSORS, EXPECTED, "lora:4", 0)
    other, _ = adapters.fresh(TRUNK_TENSORS, EXPECTED, "lora:4", 1)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    factors = [name for name in one if name.endswith("lora_a")]
    assert fresh == 2 * len(factors)
    assert not [name for name in factors if np.array_equal(one[name], other[name])]
    for name in factors:  # Kaiming's bound, and near to it
        bound = 1 / np.sqrt(one[name].shape[1])
        assert 0.8 * bound < np.abs(one[name]).max() <= bound
    assert not [name for name in one if name.endswith("lora_b") and one[name].any()]


@pytest.mark.parametrize("kind", ["lora:0", "lora:65", "lora", "prefix"])
async def test_what_is_no_kind_is_refused(service: Any, kind: str) -> None:
    assert (await initial(service, adapter=kind)).status_code == 422


async def test_a_trained_adapter_may_be_gone_on_from_as_a_whole_model(service: Any, safetensors: Make) -> None:
    made = (await initial(service, adapter="lora:4")).json()
    digest, content = trained(service, made["digest"], safetensors)
    assert (await service.put(digest, content, service.coordinator)).status_code == 201
    answer = await initial(service, weights="file", file=digest, adapter="norms")
    assert answer.status_code == 201, answer.text
    assert answer.json()["adapter"] == "norms"
    own, whole = opened(service, digest), opened(service, answer.json()["trunk"])
    wanted = merged(TRUNK_TENSORS, {name: own.tensor(name) for name in own})
    assert all(np.array_equal(whole.tensor(name), wanted[name]) for name in wanted)
    assert Adapter.of(whole.header.metadata) is None


# ------------------------------------------------------------------------------------------------- storing, giving out


@pytest.mark.parametrize("metadata", [{TRUNK: "ab" * 32}, {ADAPTER: "norms"}, {TRUNK: "x", ADAPTER: "norms"}])
async def test_half_an_adapter_is_malformed(service: Any, safetensors: Make, metadata: dict[str, str]) -> None:
    digest, content = safetensors({"w": np.zeros(3, np.float32)}, metadata)
    answer = await service.put(digest, content, service.admin)
    assert (answer.status_code, answer.json()["code"]) == (422, "artifact_malformed")
    assert not service.files()


async def test_who_reads_an_adapter_reads_its_trunk(service: Any, safetensors: Make) -> None:
    """Of what others than hospitals bring. What a hospital's own file names opens nothing to it."""
    secret, content = safetensors({"w": np.zeros(3, np.float32)})
    await service.put(secret, content, service.bob)
    said = Adapter(secret, "norms").metadata()
    mine, bytes_ = safetensors({"w": np.ones(3, np.float32)}, said)
    assert (await service.put(mine, bytes_, service.alice)).status_code == 201

    async def status() -> list[int]:
        paths = (f"/v1/artifacts/{secret}", f"/v1/artifacts/{secret}/info")
        return [(await service.http.get(path, headers=service.alice)).status_code for path in paths]

    assert await status() == [404, 404]
    shared, bytes_ = safetensors({"w": np.full(3, 2, np.float32)}, said)
    assert (await service.put(shared, bytes_, service.coordinator)).status_code == 201
    assert await status() == [200, 200]


# --------------------------------------------------------------------------------------------- registering, predicting


def shares(prediction: Any) -> list[float]:
    return [each["probability"] for each in prediction["probabilities"]]


async def published(service: Any, ledger_job: Callable[..., Any], make: Make, seed: int = 0) -> tuple[str, str]:
    """A registered adapter that rounds have trained, and its trunk."""
    made = (await initial(service, adapter="lora:4", seed=seed)).json()
    digest, content = trained(service, made["digest"], make)
    assert (await service.put(digest, content, service.coordinator)).status_code == 201
    service.ledger.jobs[JOB] = ledger_job(JOB, made["digest"], [(digest, {ALICE: None})])
    answer = await register(service, digest)
    assert answer.status_code == 201, answer.text
    assert answer.json()["initial_origin"] == made["origin"]
    return digest, made["trunk"]


async def test_predictions_are_the_merged_models(
    service: Any, ledger_job: Callable[..., Any], safetensors: Make
) -> None:
    digest, trunk = await published(service, ledger_job, safetensors)
    answer = await predict(service, attention="true")
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == digest

    own, over = opened(service, digest), opened(service, trunk)
    state = merged({name: over.tensor(name) for name in over}, {name: own.tensor(name) for name in own})
    whole, content = safetensors(state)
    assert (await service.put(whole, content, service.coordinator)).status_code == 201
    service.ledger.jobs["2" * 64] = ledger_job("2" * 64, whole, [(whole, {ALICE: None})])
    assert (await register(service, whole, "2" * 64)).status_code == 201
    other = (await predict(service, model=whole, attention="true")).json()
    assert shares(other) == pytest.approx(shares(answer.json()), abs=1e-6)
    assert [each["code"] for each in other["attention"]] == [each["code"] for each in answer.json()["attention"]]
    plain = (await initial(service)).json()["digest"]
    service.ledger.jobs["3" * 64] = ledger_job("3" * 64, plain, [(plain, {ALICE: None})])
    assert (await register(service, plain, "3" * 64)).status_code == 201
    assert shares((await predict(service, model=plain)).json()) != pytest.approx(shares(other), abs=1e-3)


async def test_an_adapter_is_registered_over_a_trunk_that_is_there_and_whole(
    service: Any, ledger_job: Callable[..., Any], safetensors: Make
) -> None:
    made = (await initial(service, adapter="norms")).json()
    for trunk, status, code in (
        ("ab" * 32, 404, "artifact_not_found"),
        (made["digest"], 422, "weights_do_not_fit"),
    ):
        digest, content = trained(service, made["digest"], safetensors, **Adapter(trunk, "norms").metadata())
        assert (await service.put(digest, content, service.coordinator)).status_code == 201
        service.ledger.jobs[JOB] = ledger_job(JOB, made["digest"], [(digest, {ALICE: None})])
        answer = await register(service, digest)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_an_adapter_whose_kind_its_tensors_are_not_of_is_not_registered(
    service: Any, ledger_job: Callable[..., Any], safetensors: Make
) -> None:
    made = (await initial(service, adapter="norms")).json()
    digest, content = trained(service, made["digest"], safetensors, **{ADAPTER: "lora:4"})
    await service.put(digest, content, service.coordinator)
    service.ledger.jobs[JOB] = ledger_job(JOB, made["digest"], [(digest, {ALICE: None})])
    answer = await register(service, digest)
    assert (answer.status_code, answer.json()["code"]) == (422, "weights_do_not_fit")
    assert "lora_a is missing" in answer.json()["detail"]


async def test_a_trunk_whose_file_was_changed_is_not_predicted_with(
    service: Any, ledger_job: Callable[..., Any], safetensors: Make
) -> None:
    digest, trunk = await published(service, ledger_job, safetensors, seed=78)  # one that was not loaded before
    path: Path = service.settings.directory / trunk[:2] / trunk
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    answer = await predict(service)
    assert (answer.status_code, answer.json()["code"]) == (500, "artifact_corrupt")
    again = await predict(service)
    assert (again.status_code, again.json()["code"]) == (404, "artifact_quarantined")
    answer = await service.http.get(f"/v1/artifacts/{digest}/info", headers=service.admin)
    assert answer.status_code == 200  # the adapter itself is sound


def test_pairs_that_do_not_go_together_are_named(tmp_path: Path, safetensors: Make) -> None:
    said = Adapter("ab" * 32, "norms").metadata()
    for name, (_, content) in {
        "whole": safetensors(TRUNK_TENSORS),
        "adapter": safetensors({"elsewhere": np.zeros(1, np.float32)}, said),
        "other": safetensors(TRUNK_TENSORS, said),
    }.items():
        (tmp_path / name).write_bytes(content)
    for trunk, words in (("whole", "elsewhere goes nowhere"), ("other", "is an adapter itself"), (None, "not stored")):
        with pytest.raises(adapters.WeightsDoNotFit, match=words):
            adapters.whole(tmp_path / "adapter", None if trunk is None else tmp_path / trunk)
    assert set(adapters.whole(tmp_path / "whole")) == set(TRUNK_TENSORS)

"""Initial weights, registration against the ledger, and predictions, over REST."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from concilia_kit.lesions import CLASSES
from concilia_kit.sealing import Keyring
from concilia_kit.tensorfile import TensorFile, write
from concilia_kit.wire.training import Architecture
from concilia_model import architectures, images
from concilia_model.errors import ImageTooLarge, ImageUnreadable
from concilia_model.predictor import Predictor
from PIL import Image, PngImagePlugin

SIDE = 32
JOB = "1" * 64
ALICE = "0x" + "a1" * 20


def picture(kind: str = "JPEG", size: tuple[int, int] = (90, 60), mode: str = "RGB", **save: Any) -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, kind, **save)
    return out.getvalue()


async def initial(service: Any, **request: Any) -> httpx.Response:
    body = {"architecture": "mobilenet_v2", "weights": "random", **request}
    return await service.http.post("/v1/initial-models", json=body, headers=service.admin)


async def publish(service: Any, ledger_job: Callable[..., Any], job: str = JOB, seed: int = 0) -> str:
    """A registered model: random weights as a job's only global model."""
    digest: str = (await initial(service, seed=seed)).json()["digest"]
    service.ledger.jobs[job] = ledger_job(job, digest, [(digest, {ALICE: None})])
    answer = await register(service, job, digest)
    assert answer.status_code == 201, answer.text
    return digest


async def register(service: Any, job: str, digest: str, **changes: Any) -> httpx.Response:
    body = {"job": job, "digest": digest, "architecture": "mobilenet_v2", "image_size": SIDE, **changes}
    return await service.http.post("/v1/models", json=body, headers=service.coordinator)


async def predict(service: Any, content: bytes, who: dict[str, str] | None = None, **query: str) -> httpx.Response:
    files = {"image": ("lesion.jpg", content, "image/jpeg")}
    return await service.http.post("/v1/predictions", files=files, params=query, headers=who or service.clinician)


# ------------------------------------------------------------------------------------------------- initial weights


async def test_the_same_request_gives_the_same_bytes(service: Any) -> None:
    one, two, other = await asyncio.gather(initial(service), initial(service), initial(service, seed=1))
    assert one.status_code == two.status_code == 201
    assert one.json() == two.json()
    assert one.json()["digest"] != other.json()["digest"]
    assert one.json()["origin"] == "random: 0 tensors loaded, 314 fresh (seed 0)"
    assert (one.json()["loaded_tensors"], one.json()["fresh_tensors"]) == (0, 314)
    info = (await service.http.get(f"/v1/artifacts/{one.json()['digest']}/info", headers=service.alice)).json()
    assert (info["origin"], info["tensors"]) == (one.json()["origin"], 314)
    assert info["owner"].lower() == "0x" + "0" * 38 + "d5"
    stored = TensorFile.open(service.settings.directory / info["digest"][:2] / info["digest"], service.keys)
    fresh = architectures.fresh(Architecture.MOBILENET_V2, 0)
    assert all(np.array_equal(stored.tensor(name), fresh[name]) for name in fresh)
    assert stored.header.metadata == {"origin": info["origin"]}


async def test_a_trunk_alone_from_a_file(service: Any, safetensors: Callable[..., tuple[str, bytes]]) -> None:
    trained = architectures.fresh(Architecture.MOBILENET_V2, 9)
    trunk = {name: array for name, array in trained.items() if not name.startswith("classifier")}
    digest, content = safetensors(trunk)
    await service.put(digest, content, service.admin)
    made = (await initial(service, weights="file", file=digest)).json()
    assert made["origin"] == f"file {digest[:8]}…: 312 tensors loaded, 2 fresh (seed 0)"
    stored = TensorFile.open(service.settings.directory / made["digest"][:2] / made["digest"], service.keys)
    assert np.array_equal(stored.tensor("features.0.0.weight"), trained["features.0.0.weight"])
    fresh = architectures.fresh(Architecture.MOBILENET_V2, 0)
    assert np.array_equal(stored.tensor("classifier.1.weight"), fresh["classifier.1.weight"])


async def test_a_head_of_another_class_count_is_said_to_be_replaced(
    service: Any, safetensors: Callable[..., tuple[str, bytes]]
) -> None:
    tensors = dict(architectures.fresh(Architecture.MOBILENET_V2, 9))
    tensors |= {"classifier.1.weight": np.ones((9, 1280), np.float32), "classifier.1.bias": np.ones(9, np.float32)}
    digest, content = safetensors(tensors)
    await service.put(digest, content, service.admin)
    made = (await initial(service, weights="file", file=digest)).json()
    assert made["origin"].endswith("312 tensors loaded, 2 fresh (seed 0), head for 9 classes replaced")


async def test_initial_weights_that_cannot_be_made(service: Any, safetensors: Callable[..., tuple[str, bytes]]) -> None:
    digest, content = safetensors({"other": np.zeros(3, np.float32)})
    await service.put(digest, content, service.admin)
    stored = service.files()
    misfit = await initial(service, weights="file", file=digest)
    assert (misfit.status_code, misfit.json()["code"]) == (422, "weights_do_not_fit")
    assert len(misfit.json()["tensors"]) == 5
    absent = await initial(service, weights="file", file="0" * 64)
    assert (absent.status_code, absent.json()["code"]) == (404, "artifact_not_found")
    offline = await initial(service, weights="imagenet")
    assert (offline.status_code, offline.json()["code"]) == (503, "weights_unavailable")
    assert "safetensors" in offline.json()["detail"]
    assert (await initial(service, weights="file")).status_code == 422
    assert (await initial(service, architecture="vgg16")).status_code == 422
    assert service.files() == stored


async def test_initial_weights_for_which_there_is_no_room(
    serve: Any, settings: Any, small_disk: Path, networks: Any, safetensors: Callable[..., tuple[str, bytes]]
) -> None:
    networks.release(Architecture.MOBILENET_V2)
    limits = resource.prlimit(networks.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(networks.pid, resource.RLIMIT_FSIZE, (2 * 2**20, limits[1]))  # it writes the file
    wanted = {"architecture": "mobilenet_v2", "weights": "random"}
    small = safetensors({"a": np.zeros(9, np.float32)})
    try:
        async with serve(settings.model_copy(update={"directory": small_disk / "store"})) as service:
            answer = await service.http.post("/v1/initial-models", json=wanted, headers=service.admin)
            assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
            assert service.files() == []
            assert (await service.put(*small, service.alice)).status_code == 201
    finally:
        resource.prlimit(networks.pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("who", ["alice", "clinician", "auditor"])
async def test_who_makes_initial_weights_and_registers(service: Any, who: str) -> None:
    for path in ("/v1/initial-models", "/v1/models"):
        assert (await service.http.post(path, json={}, headers=getattr(service, who))).status_code == 403


# ---------------------------------------------------------------------------------------------------- registration


async def test_a_published_model_has_its_lineage(service: Any, ledger_job: Callable[..., Any]) -> None:
    base = (await initial(service)).json()
    head = (await initial(service, seed=1)).json()["digest"]
    bob = "0x" + "b0" * 20
    service.ledger.jobs[JOB] = ledger_job(JOB, base["digest"], [("3" * 64, {bob: None}), (head, {ALICE: None})])
    first = await register(service, JOB, head)
    assert first.status_code == 201
    version = first.json()
    assert (version["initial"], version["initial_origin"]) == (base["digest"], base["origin"])
    assert (version["rounds"], version["lineage"]) == (2, ["3" * 64, head])
    assert [address.lower() for address in version["contributors"]] == [ALICE, bob]
    again = await register(service, JOB, head)
    assert again.json() == version
    otherwise = await register(service, JOB, head, image_size=64)
    assert (otherwise.status_code, otherwise.json()["code"]) == (409, "already_registered")
    for who in (service.alice, service.clinician, service.auditor):
        assert (await service.http.get("/v1/models", headers=who)).json() == [version]
        assert (await service.http.get(f"/v1/models/{head}", headers=who)).json() == version
    unknown = await service.http.get(f"/v1/models/{'0' * 64}", headers=service.alice)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "no_model")


async def test_the_chain_decides_what_is_published(service: Any, ledger_job: Callable[..., Any]) -> None:
    digest = (await initial(service)).json()["digest"]
    other = (await initial(service, seed=1)).json()["digest"]
    rounds = [(digest, {ALICE: None})]

    async def code(asked: str) -> tuple[int, str]:
        answer = await register(service, JOB, asked)
        return answer.status_code, answer.json().get("code", "")

    assert await code(digest) == (409, "not_published")  # no such job
    service.ledger.jobs[JOB] = ledger_job(JOB, other, rounds, published=False)
    assert await code(digest) == (409, "not_published")
    service.ledger.jobs[JOB] = ledger_job(JOB, other, rounds)
    assert await code(other) == (409, "not_published")
    service.ledger.jobs[JOB] = ledger_job(JOB, other, [("5" * 64, {ALICE: None})])
    assert await code("5" * 64) == (404, "artifact_not_found")
    assert (await service.http.get("/v1/models", headers=service.alice)).json() == []


async def test_a_model_that_is_not_what_it_is_said_to_be(service: Any, ledger_job: Callable[..., Any]) -> None:
    digest = (await initial(service)).json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {ALICE: None})])
    answer = await register(service, JOB, digest, architecture="resnet18")
    assert (answer.status_code, answer.json()["code"]) == (422, "weights_do_not_fit")


# ------------------------------------------------------------------------------------------------------ prediction


async def test_a_prediction(service: Any, ledger_job: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    nothing_yet = await predict(service, picture())
    assert (nothing_yet.status_code, nothing_yet.json()["code"]) == (404, "no_model")
    first = await publish(service, ledger_job)
    second = await publish(service, ledger_job, job="2" * 64, seed=1)
    stored = service.files()
    with caplog.at_level(logging.DEBUG):
        answer = (await predict(service, picture(), model=first)).json()
    assert (answer["model"], answer["job"]) == (first, JOB)
    assert [item["code"] for item in answer["probabilities"]] == list(CLASSES)
    assert math.fsum(item["probability"] for item in answer["probabilities"]) == pytest.approx(1, abs=1e-9)
    assert (await predict(service, picture())).json()["model"] == second  # the newest, where none is named
    again = (await predict(service, picture(), model=first)).json()
    assert again["probabilities"] == answer["probabilities"]
    assert service.files() == stored
    assert "lesion.jpg" not in caplog.text
    unknown = await predict(service, picture(), model="0" * 64)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "no_model")


async def test_who_predicts(service: Any, ledger_job: Callable[..., Any]) -> None:
    await publish(service, ledger_job)
    who = ("clinician", "admin", "auditor", "alice", "coordinator")
    statuses = [(await predict(service, picture(), getattr(service, name))).status_code for name in who]
    assert statuses == [200, 200, 200, 200, 403]


async def test_pictures_that_are_refused(serve: Any, settings: Any, ledger_job: Callable[..., Any]) -> None:
    async with serve(settings.model_copy(update={"max_image_bytes": 60_000})) as service:
        await publish(service, ledger_job)
        good = picture()
        cases = {
            b"": (422, "image_unreadable"),
            b"no picture": (422, "image_unreadable"),
            good[: len(good) // 2]: (422, "image_unreadable"),
            picture("GIF"): (422, "image_unreadable"),
            picture("TIFF"): (422, "image_unreadable"),
            picture(size=(300, 300), quality=100): (413, "image_too_large"),
            bytes(200_000): (413, "image_too_large"),
        }
        for content, expected in cases.items():
            answer = await predict(service, content)
            assert (answer.status_code, answer.json()["code"]) == expected, content[:20]
        for request in (
            {"content": good},
            {"json": {"image": "x"}},
            {"data": {"image": "x"}},
            {"files": {"picture": ("a.jpg", good)}},
            {"files": [("image", ("a.jpg", good)), ("image", ("b.jpg", good))]},
            {"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            {"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data"}},
        ):
            headers = {**service.clinician, **request.pop("headers", {})}  # type: ignore[dict-item]
            answer = await service.http.post("/v1/predictions", headers=headers, **request)
            assert (answer.status_code, answer.json()["code"]) == (422, "image_unreadable"), request
        ready = await service.http.get("/readyz")
        assert ready.json() == {"database": "ok", "disk": "ok", "networks": "ok"}


async def test_a_body_without_a_length_is_bounded_too(service: Any) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while sent < 10**8:
            sent += 10**6
            yield bytes(10**6)

    headers = {**service.clinician, "Content-Type": "multipart/form-data; boundary=x"}
    answer = await service.http.post("/v1/predictions", content=endless(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert sent <= 12 * 10**6


async def test_a_model_whose_file_was_changed_is_not_served(service: Any, ledger_job: Callable[..., Any]) -> None:
    digest = await publish(service, ledger_job, seed=77)  # one that was not loaded before
    path = service.settings.directory / digest[:2] / digest
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    answer = await predict(service, picture())
    assert (answer.status_code, answer.json()["code"]) == (500, "artifact_corrupt")


def test_the_least_recently_used_model_goes(tmp_path: Path, keys: Keyring) -> None:
    predictor, batch = Predictor(1, keys), torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    files = {}
    for seed in (0, 1):
        path = tmp_path / str(seed)
        files[write(path, architectures.fresh(Architecture.MOBILENET_V2, seed), keys=keys)] = path
    first, second = files
    answers = [
        predictor.see(digest, files[digest], Architecture.MOBILENET_V2, batch).shares
        for digest in (first, second, first)
    ]
    assert answers[0] == answers[2] != answers[1]
    assert list(predictor._models) == [first]


# ---------------------------------------------------------------------------------------------------------- images


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    turned = images.decode(picture("JPEG", (90, 60), exif=exif), 10**6)
    assert (turned.size, turned.mode) == ((60, 90), "RGB")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        out = io.BytesIO()
        Image.fromarray(np.full((8, 8), 999, np.uint16)).save(out, "PNG")
        content = out.getvalue()
    else:
        content = picture("PNG", mode=mode, **({"transparency": bytes([0, 9])} if mode == "P" else {}))
    batch = images.prepare(images.decode(content, 10**6), SIDE)
    assert tuple(batch.shape) == (1, 3, SIDE, SIDE)
    assert batch.isfinite().all()


def test_pixels_are_bounded_by_the_header() -> None:
    small = picture("PNG")
    claim = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small[24:29]
    bomb = small[:12] + claim + struct.pack(">I", zlib.crc32(claim)) + small[33:]
    for limit in (10**6, 10**10):  # ours, and Pillow's own where ours is larger
        with pytest.raises(ImageTooLarge):
            images.decode(bomb, limit)
    assert images.decode(picture(size=(100, 10)), 1000).size == (100, 10)
    with pytest.raises(ImageTooLarge):
        images.decode(picture(size=(91, 11)), 1000)
    with pytest.raises(ImageTooLarge):  # each row costs more than its one pixel
        images.decode(picture("PNG", size=(1, 70_000)), 10**6)


def test_text_that_swells_is_refused() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * 10**7, zip=True)
    with pytest.raises(ImageUnreadable):
        images.decode(picture("PNG", pnginfo=notes), 10**6)

"""Bytes that change on the disk: found, named, put aside, and brought again."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_kit.sealing import Keyring
from concilia_model.artifacts import DirectoryStore
from concilia_model.errors import ArtifactQuarantined
from concilia_model.integrity import SCRUB_AGAIN_SECONDS, Found
from concilia_model.metrics import FOUND
from concilia_model.store import Removal, Store
from concilia_model.upkeep import DirectoryUpkeep
from PIL import Image

from tests.unit.model.bench import ALICE, Bench

JOB = "5a" * 32
Make = Callable[..., tuple[str, bytes]]


def test_every_way_of_finding_is_counted_from_none() -> None:
    assert set(FOUND) == {found.value for found in Found}


@pytest.fixture
def small(safetensors: Make) -> tuple[str, bytes]:
    return safetensors({"w": np.arange(5000, dtype=np.float32)})


def flip(path: Path, place: int = -1) -> None:
    """Change one bit, in place."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


async def test_a_flipped_bit_is_found_and_the_bytes_may_be_brought_again(
    service: Any, small: tuple[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    digest, content = small
    path = f"/v1/artifacts/{digest}"
    file = service.settings.directory / digest[:2] / digest
    await service.put(digest, content, service.alice)
    intact = await service.http.post(f"{path}/check", headers=service.alice)
    assert (intact.status_code, intact.json()["intact"], intact.json()["digest"]) == (200, True, digest)
    flip(file)
    assert (await service.http.get(path, headers=service.alice)).content != content
    found = await service.http.post(f"{path}/check", headers=service.alice)
    assert (found.status_code, found.json()["intact"]) == (200, False)
    (aside,) = (service.settings.directory / "quarantine").iterdir()
    assert aside.name.startswith(digest)
    for ask in ("get", "head"):
        assert (await getattr(service.http, ask)(path, headers=service.alice)).status_code == 404
    for answer in (
        await service.http.get(path, headers=service.auditor),
        await service.http.get(f"{path}/info", headers=service.alice),
        await service.http.post(f"{path}/check", headers=service.alice),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "artifact_quarantined")
        assert answer.json()["artifact"] == {**(answer.json()["artifact"]), "digest": digest, "size": len(content)}
    assert digest in capsys.readouterr().out  # named in the log
    assert 'concilia_artifacts_corrupt_total{found="asked"} 1.0' in (await service.http.get("/metrics")).text
    again = await service.put(digest, content, service.alice)
    assert again.status_code == 200
    assert (await service.http.get(path, headers=service.alice)).content == content
    assert (await service.http.post(f"{path}/check", headers=service.alice)).json()["intact"] is True
    assert aside.exists()  # for whoever wants to know what happened


async def test_a_file_that_was_put_back_by_hand_is_there_again(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    path = f"/v1/artifacts/{digest}"
    file = service.settings.directory / digest[:2] / digest
    await service.put(digest, content, service.alice)
    flip(file)
    assert not (await service.http.post(f"{path}/check", headers=service.alice)).json()["intact"]
    file.write_bytes(content)
    assert (await service.http.post(f"{path}/check", headers=service.auditor)).json()["intact"]
    store: Store = service.http._transport.app.state.services.artifacts.store
    assert store.removed(digest) is None
    assert (await service.http.get(path, headers=service.alice)).content == content
    assert (await service.http.get(path, headers=service.bob)).status_code == 404  # nobody may read more than before


async def test_who_may_ask(service: Any, small: tuple[str, bytes]) -> None:
    digest, content = small
    await service.put(digest, content, service.alice)
    for who, status in (("bob", 404), ("clinician", 403), ("auditor", 200), ("coordinator", 200)):
        answer = await service.http.post(f"/v1/artifacts/{digest}/check", headers=getattr(service, who))
        assert answer.status_code == status
    assert (await service.http.post(f"/v1/artifacts/{'0' * 64}/check", headers=service.admin)).status_code == 404


async def test_many_ask_at_once_and_one_look_answers_them(
    service: Any, small: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, content = small
    await service.put(digest, content, service.alice)
    looks = 0
    real = DirectoryUpkeep.hash

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        time.sleep(0.2)
        return real(*given, **named)

    monkeypatch.setattr(DirectoryUpkeep, "hash", counted)
    ask = [service.http.post(f"/v1/artifacts/{digest}/check", headers=service.alice) for _ in range(12)]
    assert [answer.json()["intact"] for answer in await asyncio.gather(*ask)] == [True] * 12
    assert looks <= 3
    flip(service.settings.directory / digest[:2] / digest)
    ask = [service.http.post(f"/v1/artifacts/{digest}/check", headers=service.alice) for _ in range(12)]
    answers = await asyncio.gather(*ask)
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 11
    assert {answer.json().get("code") for answer in answers} == {None, "artifact_quarantined"}


async def test_a_model_whose_file_has_changed_is_put_aside(service: Any, ledger_job: Callable[..., Any]) -> None:
    wanted = {"architecture": "mobilenet_v2", "weights": "random", "seed": 4711}
    digest = (await service.http.post("/v1/initial-models", json=wanted, headers=service.admin)).json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {ALICE: None})])
    body = {"job": JOB, "digest": digest, "architecture": "mobilenet_v2", "image_size": 32}
    assert (await service.http.post("/v1/models", json=body, headers=service.coordinator)).status_code == 201
    flip(service.settings.directory / digest[:2] / digest)
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), "salmon").save(picture, "JPEG")

    async def predict() -> tuple[int, str | None]:
        files = {"image": ("lesion.jpg", picture.getvalue(), "image/jpeg")}
        answer = await service.http.post("/v1/predictions", files=files, headers=service.clinician)
        return answer.status_code, answer.json().get("code")

    assert await predict() == (500, "artifact_corrupt")
    assert await predict() == (404, "artifact_quarantined")
    made = await service.http.post("/v1/initial-models", json=wanted, headers=service.admin)  # the same bytes
    assert made.json()["digest"] == digest
    assert (await predict())[0] == 200


async def test_a_file_that_goes_between_the_look_and_the_answer(
    service: Any, small: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, content = small
    await service.put(digest, content, service.alice)
    monkeypatch.setattr(DirectoryStore, "path", lambda self, digest: self._place(digest))
    service.files()[0].unlink()
    monkeypatch.setattr(DirectoryStore, "exists", lambda _self, _digest: True)
    answer = await service.http.get(f"/v1/artifacts/{digest}", headers=service.alice)
    assert (answer.status_code, answer.json()["code"]) == (404, "artifact_not_found")


# the scrub


@pytest.fixture
def bench(tmp_path: Path, engine: Any, keys: Keyring) -> Bench:
    return Bench(tmp_path / "store", engine, keys=keys)


def test_the_scrub_takes_every_file_once_a_day_and_finds_what_changed(bench: Bench, safetensors: Make) -> None:
    made = [safetensors({"w": np.full(300_000, value, np.float32)}) for value in range(4)]
    paths = [bench.put(*each) for each in made]
    assert not bench.integrity.scrub()  # all were hashed as they came
    bench.now += SCRUB_AGAIN_SECONDS + 1
    flip(paths[2], place=700_000)
    paths[3].unlink()
    assert [bench.integrity.scrub() for _ in range(5)] == [True, True, True, True, False]
    removed = bench.store.removed(made[2][0])
    assert removed is not None
    assert removed.because is Removal.CORRUPT
    assert [path.exists() for path in paths] == [True, True, False, False]
    assert bench.upkeep.quarantined().files == 1
    assert bench.store.removed(made[3][0]) is None  # lost is not corrupt; whoever has it brings it again
    bench.now += SCRUB_AGAIN_SECONDS + 1
    assert [bench.integrity.scrub() for _ in range(4)] == [True, True, True, False]


def test_the_scrub_keeps_to_its_rate_and_ends_when_told(tmp_path: Path, engine: Any, safetensors: Make) -> None:
    slow = Bench(tmp_path / "store", engine, rate=1)
    digest, content = safetensors({"w": np.zeros(10_000_000, np.float32)})  # 40 s at this rate
    slow.put(digest, content)
    slow.now += SCRUB_AGAIN_SECONDS + 1
    ended = threading.Event()

    async def scrub() -> None:
        await slow.integrity.scrub_for_ever()
        ended.set()

    scrubbing = threading.Thread(target=lambda: asyncio.run(scrub()))
    scrubbing.start()
    assert not ended.wait(0.5)
    slow.integrity.stop()
    scrubbing.join(30)
    assert ended.is_set()
    assert slow.store.checked_at(digest) == 1000.0  # not looked through


async def test_no_scrub_at_rate_0(tmp_path: Path, engine: Any) -> None:
    await asyncio.wait_for(Bench(tmp_path / "store", engine, rate=0).integrity.scrub_for_ever(), 5)


def test_a_sector_that_cannot_be_read_counts_as_changed(
    bench: Bench, small: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(*small)

    def fail(_size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert not bench.integrity.inspect(small[0], Found.ASKED, fail)
    with pytest.raises(ArtifactQuarantined):
        bench.integrity.inspect(small[0], Found.ASKED)


def test_bytes_brought_while_the_broken_ones_are_hashed_stay(
    bench: Bench, small: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, content = small
    flip(bench.put(digest, content))
    real, repaired = bench.upkeep.hash, False

    def hashed(*given: Any, **named: Any) -> Any:
        nonlocal repaired
        found = real(*given, **named)
        if not repaired:
            repaired = True
            bench.put(digest, content)
        return found

    monkeypatch.setattr(bench.upkeep, "hash", hashed)
    assert bench.integrity.inspect(digest, Found.ASKED)
    assert bench.content(digest) == content
    assert (bench.store.removed(digest), bench.upkeep.quarantined().files) == (None, 0)


def test_bytes_brought_before_the_record_is_marked_stay(
    bench: Bench, small: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, content = small
    flip(bench.put(digest, content))
    real = bench.store.remove

    def remove(*given: Any) -> bool:
        monkeypatch.setattr(bench.store, "remove", real)
        bench.now += 1
        bench.put(digest, content)
        return real(*given)

    monkeypatch.setattr(bench.store, "remove", remove)
    assert not bench.integrity.inspect(digest, Found.ASKED)
    assert bench.content(digest) == content
    assert bench.store.removed(digest) is None

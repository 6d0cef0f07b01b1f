"""What a file's own metadata says is secret, no hospital reads, whoever brought it and whatever names it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from concilia_aggregator import noising
from concilia_kit import database
from concilia_kit.wire.adapter import ADAPTER, TRUNK
from concilia_kit.wire.metadata import CONFIDENTIAL, NOISE
from concilia_model import tus
from concilia_model.references import References
from concilia_model.retention import DAY, Policy, Reading, goes

Make = Callable[..., tuple[str, bytes]]


async def statuses(service: Any, digest: str) -> dict[str, int]:
    found = {}
    for name in ("alice", "bob", "coordinator", "admin", "auditor", "clinician"):
        headers = getattr(service, name)
        answers = [
            await service.http.request(method, f"/v1/artifacts/{digest}{tail}", headers=headers)
            for method, tail in (("GET", ""), ("HEAD", ""), ("GET", "/info"), ("POST", "/check"))
        ]
        assert len({answer.status_code for answer in answers}) == 1
        found[name] = answers[0].status_code
    return found


HIDDEN = {"alice": 404, "bob": 404, "coordinator": 200, "admin": 200, "auditor": 200, "clinician": 403}


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, bytes]:
    digest = noising.write_key(tmp_path / "key")
    return digest, (tmp_path / "key").read_bytes()


@pytest.mark.parametrize("who", ["coordinator", "admin"])
async def test_no_hospital_reads_the_key_of_noise(service: Any, key: tuple[str, bytes], who: str) -> None:
    brought = await service.put(*key, getattr(service, who))
    assert (brought.status_code, brought.json()["secret"]) == (201, True)
    assert await statuses(service, key[0]) == HIDDEN
    hidden = (await service.http.get(f"/v1/artifacts/{key[0]}", headers=service.bob)).json()
    absent = (await service.http.get(f"/v1/artifacts/{'0' * 64}", headers=service.bob)).json()
    assert {**hidden, "detail": ""} == {**absent, "detail": ""}


async def test_a_resumed_upload_of_a_key_is_secret_too(service: Any, key: tuple[str, bytes]) -> None:
    digest, content = key
    head = {**service.coordinator, "Tus-Resumable": "1.0.0"}
    metadata = f"digest {base64.b64encode(digest.encode()).decode()}"
    made = await service.http.post(
        "/v1/uploads", headers={**head, "Upload-Length": str(len(content)), "Upload-Metadata": metadata}
    )
    assert made.status_code == 201, made.text
    patch = {**head, "Upload-Offset": "0", "Content-Type": tus.MEDIA_TYPE}
    sent = await service.http.patch(f"/v1/{made.headers['location']}", headers=patch, content=content)
    assert sent.status_code == 204, sent.text
    assert await statuses(service, digest) == HIDDEN


async def test_nothing_that_names_a_key_opens_it(service: Any, safetensors: Make, key: tuple[str, bytes]) -> None:
    """Trunks of shared adapters are shared, and naming one by its digest must not be a way in."""
    await service.put(*key, service.coordinator)
    over = {TRUNK: key[0], ADAPTER: "norms"}
    for who, value in ((service.coordinator, 1), (service.alice, 2)):
        adapter = safetensors({"w": np.full(3, value, np.float32)}, over)
        assert (await service.put(*adapter, who)).status_code == 201
    assert await statuses(service, key[0]) == HIDDEN


async def test_models_and_updates_are_what_they_were(service: Any, safetensors: Make) -> None:
    model = safetensors({"w": np.zeros(2, np.float32)}, {NOISE: "a" * 64})
    brought = await service.put(*model, service.coordinator)
    assert "secret" not in brought.json()
    assert (await statuses(service, model[0]))["bob"] == 200
    marked = safetensors({"w": np.ones(2, np.float32)}, {CONFIDENTIAL: "mine"})
    await service.put(*marked, service.alice)
    assert await statuses(service, marked[0]) == {**HIDDEN, "alice": 200}


async def test_keys_are_kept_for_as_long_as_models(service: Any, key: tuple[str, bytes]) -> None:
    await service.put(*key, service.coordinator)
    engine: sa.Engine = database.engine(service.settings.database_url)
    (facts,) = References(engine).facts()
    engine.dispose()
    assert facts.digest == key[0]
    later = facts.brought_at + 10_000 * DAY
    assert not goes(facts, Policy(updates=DAY, orphans=DAY), Reading(since=0, taking_since=None), later)

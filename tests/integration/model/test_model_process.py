"""The model service as a process of its own, on sockets, beside an auth and a chain service reduced to what it asks."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from concilia_kit.roles import Role
from concilia_kit.signing import Update
from concilia_kit.wire.chain import LedgerJob, LedgerRound, LedgerUpdate, RoundStatus
from PIL import Image

from .model_process import Peers, Running, tensor_file

pytestmark = pytest.mark.integration

ALICE, CAROL = "0x" + "1" * 40, "0x" + "2" * 40
JOB = "7" * 64


def _published(digest: str) -> LedgerJob:
    update = Update(hospital=ALICE, job=JOB, round=1, base=digest, digest="c" * 64, samples=1, metrics="d" * 64)
    recorded = LedgerUpdate(
        update=update, signature="0x11", metrics=None, reason=None, transaction="0x" + "2" * 64, block=1
    )
    closed = LedgerRound(
        job=JOB,
        round=1,
        status=RoundStatus.CLOSED,
        base=digest,
        deadline=1,
        quorum=1,
        submitted=1,
        rejected=0,
        global_digest=digest,
        contributions="e" * 64,
        updates=(recorded,),
    )
    return LedgerJob(job=JOB, head=digest, published=True, rounds=(closed,))


def test_from_upload_to_prediction(
    start: Callable[[], Running], peers: tuple[Peers, str], key: tuple[Path, Path, str]
) -> None:
    told, _ = peers
    told.readers.clear()
    service = start()
    hospital = told.headers(ALICE, Role.HOSPITAL)
    coordinator = told.headers(CAROL, Role.COORDINATOR)
    ready = service.http.get("/readyz")
    assert ready.json() == {"database": "ok", "disk": "ok", "networks": "ok", "auth": "ok", "chain": "ok"}

    digest, content = tensor_file(24)
    sent = service.http.put(f"/v1/artifacts/{digest}", content=io.BytesIO(content), headers=hospital)
    assert sent.status_code == 201, sent.text
    assert service.http.get(f"/v1/artifacts/{digest}", headers=hospital).content == content
    rest = service.http.get(f"/v1/artifacts/{digest}", headers={**hospital, "Range": "bytes=9000000-"})
    assert (rest.status_code, rest.content) == (206, content[9_000_000:])
    # Answered before the body is read; the connection goes on to work.
    again = service.http.put(f"/v1/artifacts/{digest}", content=io.BytesIO(content), headers=hospital)
    assert again.status_code == 200
    wrong = service.http.put(f"/v1/artifacts/{'0' * 64}", content=content, headers=hospital)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "digest_mismatch")

    asked = {"architecture": "mobilenet_v2", "weights": "random"}
    made = service.http.post("/v1/initial-models", json=asked, headers=coordinator).json()
    told.jobs[JOB] = _published(made["digest"])
    registration = {"job": JOB, "digest": made["digest"], "architecture": "mobilenet_v2", "image_size": 64}
    registered = service.http.post("/v1/models", json=registration, headers=coordinator)
    assert registered.status_code == 201, registered.text
    assert told.readers == [key[2]]  # the service asked the chain in its own name
    picture = io.BytesIO()
    Image.new("RGB", (600, 450), (200, 150, 120)).save(picture, "JPEG")
    clinician = told.headers(ALICE, Role.CLINICIAN)
    sent = {"files": {"image": ("lesion-of-anna.jpg", picture.getvalue())}, "headers": clinician}
    answer = service.http.post("/v1/predictions", params={"attention": "true"}, **sent).json()
    assert answer["model"] == made["digest"]
    assert len(answer["attention"]) == len(answer["probabilities"]) == 7
    assert service.http.post("/v1/predictions", **sent).json()["probabilities"] == answer["probabilities"]
    told.roles[ALICE].clear()  # taken on the ledger: the token is still good, the role is gone
    while (refused := service.http.post("/v1/predictions", **sent)).status_code == 200:
        time.sleep(0.05)
    assert (refused.status_code, refused.json()["code"]) == (403, "role_missing")
    assert sum(item["probability"] for item in answer["probabilities"]) == pytest.approx(1, abs=1e-9)
    assert len(service.files()) == 2
    log = service.stop()
    assert service.process.returncode in (0, -15)
    assert "Traceback" not in log
    assert "anna" not in log


def test_a_process_killed_in_the_middle_of_an_upload(start: Callable[[], Running], peers: tuple[Peers, str]) -> None:
    service = start()
    headers = peers[0].headers(ALICE, Role.HOSPITAL)
    digest, content = tensor_file(8)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            f"PUT /v1/artifacts/{digest} HTTP/1.1\r\nHost: model\r\nContent-Length: {len(content)}\r\n"
            f"Authorization: {headers['Authorization']}\r\n\r\n".encode()
            + content[: 6 * 2**20]
        )
        while not any(path.stat().st_size > 2**20 for path in service.files()):
            time.sleep(0.02)
            assert service.process.poll() is None
        service.kill()
    assert not (service.directory / digest[:2] / digest).exists()
    service = start()
    assert service.http.get(f"/v1/artifacts/{digest}", headers=headers).status_code == 404
    assert service.http.put(f"/v1/artifacts/{digest}", content=content, headers=headers).status_code == 201
    assert service.http.get(f"/v1/artifacts/{digest}", headers=headers).content == content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"CONCILIA_MODEL_PORT": "0"}, "CONCILIA_MODEL_PORT"),
        ({"CONCILIA_MODEL_KEYSTORE": "/nonexistent/key.json"}, "/nonexistent/key.json is missing"),
        ({"CONCILIA_MODEL_DATABASE_URL": "nonsense"}, "CONCILIA_MODEL_DATABASE_URL"),
        ({"CONCILIA_MODEL_DATABASE_URL": "sqlite:////nonexistent/model.db"}, "CONCILIA_MODEL_DATABASE_URL"),
        ({"CONCILIA_MODEL_DIRECTORY": "/dev/null/artifacts"}, "/dev/null/artifacts"),
    ],
)
def test_settings_that_do_not_do(environment: dict[str, str], change: dict[str, str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "concilia_model"],
        env={**environment, **change},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]  # Alembic logs as JSON
    assert len(lines) == 1
    assert said in lines[0]

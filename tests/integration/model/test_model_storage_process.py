"""What is kept, as the service runs: a disk without room, the policy, a bit that flips while nobody reads."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import resource
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from concilia_kit import transfer
from concilia_kit.http import call, client
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.chain import RecordedEvent
from concilia_kit.wire.models import ArtifactCheck, StorageReport

from .model_process import Peers, Running, tensor_file
from .test_model_uploads import Bearer

pytestmark = pytest.mark.integration

ALICE, CAROL = "0x" + "1" * 40, "0x" + "2" * 40
JOB = "7" * 64
ROOM = 4 * 2**20  # bytes of the small disk
Start = Callable[[], Running]


@pytest.fixture
def small_disk(tmp_path: Path, environment: dict[str, str]) -> Iterator[bool]:
    """The store lies on a file system of 4 MiB where one may be mounted, else files cannot grow beyond that; whether
    it could be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    environment["CONCILIA_MODEL_DIRECTORY"] = str(folder / "artifacts")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        yield True
        subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))  # what is started inherits it
    yield False
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _event(name: str, block: int, **arguments: str | int) -> RecordedEvent:
    return RecordedEvent(
        name=name,
        job=JOB,
        round=1,
        account=None,
        block=block,
        log_index=0,
        transaction=f"0x{block:064x}",
        at=datetime.fromtimestamp(1_700_000_000, UTC),
        arguments={"job": JOB, "round": 1, **arguments},
    )


def _until(seen: Callable[[], bool], service: Running) -> None:
    end = time.monotonic() + 60
    while not seen():
        assert service.process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.usefixtures("small_disk")
def test_without_room_it_says_so_leaves_no_half_and_lives(start: Start, peers: tuple[Peers, str]) -> None:
    service = start()
    hospital = peers[0].headers(ALICE, Role.HOSPITAL)
    admin = peers[0].headers(CAROL, Role.ADMIN)
    large, small = tensor_file(6), tensor_file(1)

    def refused(answer: httpx.Response) -> None:
        assert (answer.status_code, answer.json()["code"]) == (507, "no_space")

    def unsized() -> Iterator[bytes]:
        for begin in range(0, len(large[1]), 2**18):
            yield large[1][begin : begin + 2**18]

    for body in (large[1], unsized()):  # seen beforehand, and seen only while it comes
        with contextlib.suppress(httpx.WriteError):  # answered while we were still sending, and hung up on
            refused(service.http.put(f"/v1/artifacts/{large[0]}", content=body, headers=hospital))
        assert service.files() == []
    # An upload that was small enough when it began.
    other = tensor_file(2, seed=1)
    named = base64.b64encode(other[0].encode()).decode()
    tus = {"Tus-Resumable": "1.0.0", **hospital}
    begun = service.http.post(
        "/v1/uploads",
        headers={**tus, "Upload-Length": str(len(other[1])), "Upload-Metadata": f"digest {named}"},
    )
    assert begun.status_code == 201
    assert service.http.put(f"/v1/artifacts/{small[0]}", content=small[1], headers=hospital).status_code == 201
    filler = service.directory / "filler"
    filler.write_bytes(bytes(ROOM * 5 // 16))
    sent = service.http.patch(
        f"/v1/{begun.headers['location']}",
        content=other[1],
        headers={**tus, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
    )
    if sent.status_code != 204:  # (a limit on each file's size lets this one pass)
        refused(sent)
        assert service.http.get(f"/v1/artifacts/{other[0]}", headers=hospital).status_code == 404
        filler.unlink()
        with client(f"http://127.0.0.1:{service.port}", Bearer(hospital)) as http:
            moved = transfer.upload(http, other[0], _on_disk(service, other[1]))
        assert moved.moved < len(other[1])  # what had come is gone on with
    assert service.http.get(f"/v1/artifacts/{other[0]}", headers=hospital).content == other[1]
    asked = {"architecture": "resnet18", "weights": "random"}  # 45 MB
    refused(service.http.post("/v1/initial-models", json=asked, headers=admin))
    assert service.http.get(f"/v1/artifacts/{small[0]}", headers=hospital).content == small[1]
    assert service.http.get("/healthz").status_code == 200
    log = service.stop()
    assert "Traceback" not in log


def _on_disk(service: Running, content: bytes) -> Path:
    path = service.directory.parent.parent / "update.safetensors"
    path.write_bytes(content)
    return path


def test_an_update_goes_by_policy_and_its_record_stays(
    start: Start, environment: dict[str, str], peers: tuple[Peers, str]
) -> None:
    environment |= {"CONCILIA_MODEL_KEEP_UPDATES_DAYS": "0.00001", "CONCILIA_MODEL_STORAGE_SWEEP_SECONDS": "0.2"}
    hospital = peers[0].headers(ALICE, Role.HOSPITAL)
    coordinator = peers[0].headers(CAROL, Role.COORDINATOR)
    (update, of_update), (base, of_base), (orphan, of_orphan) = (tensor_file(1, seed) for seed in (1, 2, 3))
    service = start()
    for digest, content, who in (
        (update, of_update, hospital),
        (orphan, of_orphan, hospital),
        (base, of_base, coordinator),
    ):
        assert service.http.put(f"/v1/artifacts/{digest}", content=content, headers=who).status_code == 201
    peers[0].events = [
        _event("RoundOpened", 1, base=base, deadline=1_700_000_100, quorum=1),
        _event("UpdateRecorded", 2, digest=update, hospital=ALICE),
        _event("RoundClosed", 3, globalDigest=base, count=1),
    ]
    path = f"/v1/artifacts/{update}"
    _until(lambda: service.http.get(path, headers=hospital).status_code == 410, service)
    gone = service.http.get(f"{path}/info", headers=coordinator)
    assert (gone.json()["code"], gone.json()["artifact"]["owner"]) == ("artifact_removed", ALICE)
    with client(f"http://127.0.0.1:{service.port}", Bearer(hospital)) as http:
        with pytest.raises(Problem) as told:
            transfer.download(http, update, service.directory.parent / "got")
        assert (told.value.problem_status, told.value.problem_code) == (410, "artifact_removed")
    report = StorageReport.model_validate_json(service.http.get("/v1/storage", headers=coordinator).content)
    assert (report.removed_files, report.removed_bytes) == (1, len(of_update))
    left = {item.kind.value: item.files for item in report.stored if item.files}
    assert left == {"global": 1, "orphan": 1}
    assert {path.name for path in service.files()} == {base, orphan}
    peers[0].events = []


def test_a_bit_that_flips_is_found_before_anybody_reads_and_healed_by_who_has_it(
    start: Start, environment: dict[str, str], peers: tuple[Peers, str]
) -> None:
    hospital = peers[0].headers(ALICE, Role.HOSPITAL)
    digest, content = tensor_file(2)
    path = f"/v1/artifacts/{digest}"
    service = start()
    assert service.http.put(path, content=content, headers=hospital).status_code == 201
    service.stop()
    stored = service.directory / digest[:2] / digest
    with stored.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    database = environment["CONCILIA_MODEL_DATABASE_URL"].removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE artifacts SET checked_at = 0")  # as if nobody had looked for long
    connection.close()
    service = start()
    _until(lambda: service.http.get(path, headers=hospital).status_code == 404, service)
    with client(f"http://127.0.0.1:{service.port}", Bearer(hospital)) as http:
        with pytest.raises(Problem) as told:
            transfer.download(http, digest, service.directory.parent / "got")
        assert (told.value.problem_status, told.value.problem_code) == (404, "artifact_quarantined")
        transfer.upload(http, digest, _on_disk(service, content))
        transfer.download(http, digest, service.directory.parent / "got")
        checked = ArtifactCheck.model_validate_json(call(http, "POST", f"{path}/check").content)
        assert checked.intact
        # While it runs: given other bytes, and told at once.
        with stored.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x55" if content[-1:] != b"\x55" else b"\x56")
        with pytest.raises(transfer.WrongBytes):
            transfer.download(http, digest, service.directory.parent / "again")
        checked = ArtifactCheck.model_validate_json(call(http, "POST", f"{path}/check").content)
        assert not checked.intact
        transfer.upload(http, digest, service.directory.parent.parent / "update.safetensors")
        transfer.download(http, digest, service.directory.parent / "again")
    assert hashlib.sha256((service.directory.parent / "again").read_bytes()).hexdigest() == digest
    log = service.stop()
    found = [json.loads(line) for line in log.splitlines() if "artifact corrupt" in line]
    assert [line["found"] for line in found] == ["scrub", "asked"]
    assert {line["artifact"] for line in found} == {digest}

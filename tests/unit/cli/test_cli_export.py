"""`concilia export`, as it is typed, against a model service whose files are what they should be or not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.numpy
from concilia.app import app
from concilia.client import Client
from concilia.commands import export
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.onnx import NOT_INSTALLED, OnnxExport, OnnxRequest
from numpy import zeros
from typer.testing import CliRunner

TRUNK = safetensors.numpy.save({"w": zeros(3)})
DIGEST_OF_TRUNK = hashlib.sha256(TRUNK).hexdigest()
WHOLE = safetensors.numpy.save({"w": zeros(2)})
ADAPTER = safetensors.numpy.save({"w": zeros(1)}, metadata=Adapter(DIGEST_OF_TRUNK, "norms").metadata())


class Service:
    """Has one model, whose bytes are `sent`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {DIGEST_OF_TRUNK: TRUNK}
        self.publish(WHOLE)

    def publish(self, content: bytes) -> None:
        self.digest = hashlib.sha256(content).hexdigest()
        self.files[self.digest] = content

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            version = {
                "digest": self.digest,
                "job": "cd" * 32,
                "architecture": "resnet18",
                "image_size": 96,
                "initial": "ef" * 32,
                "initial_origin": None,
                "rounds": 1,
                "contributors": [],
                "lineage": [],
                "published_at": "2026-01-01T00:00:00Z",
            }
            return httpx.Response(200, json=[version])
        raise AssertionError(request.url)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    double = Service()
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://model") as http:

        class Here:
            model = http

        class Downloading(Client):
            def download(self, digest: str, target: Path) -> None:
                target.write_bytes(double.files[digest])

        monkeypatch.setattr(export, "client", lambda _config: Downloading(Here()))  # type: ignore[arg-type]
        yield double


class Process:
    """In place of the process that exports: keeps what it was given and answers as told."""

    def __init__(self) -> None:
        self.given: OnnxRequest | None = None
        self.files: dict[str, bytes] = {}
        self.status, self.said = 0, b""

    def run(self, command: list[str], **given: Any) -> subprocess.CompletedProcess[bytes]:
        assert command == [sys.executable, "-m", "concilia_model.onnx_export"]
        self.given = asked = OnnxRequest.model_validate_json(given["input"])
        self.files = {str(each): each.read_bytes() for each in (asked.artifact, asked.trunk) if each is not None}
        told = OnnxExport(
            model=asked.digest,
            file=asked.target,
            digest="12" * 32,
            bytes=2_500_000,
            opset=18,
            classes=asked.classification.codes,
            image_size=asked.image_size,
            pictures=9,
            largest_difference=1.25e-7,
        )
        return subprocess.CompletedProcess(command, self.status, told.model_dump_json().encode(), self.said)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    double = Process()
    monkeypatch.setattr(subprocess, "run", double.run)
    return double


def typed(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, words)])


def test_a_model_is_fetched_checked_and_handed_over(service: Service, process: Process, tmp_path: Path) -> None:
    done = typed("--onnx", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    assert process.given is not None
    assert (process.given.digest, process.given.trunk) == (service.digest, None)
    assert (process.given.target, process.given.image_size) == (tmp_path / "m.onnx", 96)
    assert list(process.files.values()) == [WHOLE]
    assert not process.given.artifact.exists()
    for said in ("2.5 MB", "12" * 32, "7 classes", "1.2e-07", "9 pictures of 96 × 96", "not for diagnosis"):
        assert said in done.stdout
    told = json.loads(typed("--onnx", tmp_path / "m.onnx", "--json").stdout)
    assert told["largest_difference"] == 1.25e-7


def test_an_adapter_brings_its_trunk(service: Service, process: Process, tmp_path: Path) -> None:
    service.publish(ADAPTER)
    assert typed(service.digest[:8], "--onnx", tmp_path / "m.onnx").exit_code == 0
    assert list(process.files.values()) == [ADAPTER, TRUNK]


@pytest.mark.parametrize("which", ["model", "trunk"])
def test_other_bytes_than_the_digests_are_not_exported(
    service: Service, process: Process, tmp_path: Path, which: str
) -> None:
    service.publish(ADAPTER)
    service.files[service.digest if which == "model" else DIGEST_OF_TRUNK] = WHOLE
    done = typed("--onnx", tmp_path / "m.onnx")
    assert done.exit_code == 1
    assert "digest_mismatch" in done.stderr
    assert process.given is None


def test_without_the_extra_it_says_what_is_missing(service: Service, process: Process, tmp_path: Path) -> None:
    process.status, process.said = NOT_INSTALLED, b"onnx not installed\n"
    done = typed("--onnx", tmp_path / "m.onnx")
    assert done.exit_code == 2
    assert "concilia-model[onnx]" in done.stderr
    assert "onnx not installed" in done.stderr


def test_without_the_services_code_nothing_is_asked(
    service: Service, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_PROCESS", "no_such_package.onnx_export")
    done = typed("--onnx", tmp_path / "m.onnx")
    assert (done.exit_code, process.given) == (2, None)
    assert "concilia-model[onnx]" in done.stderr


def test_what_the_process_says_is_the_reason(service: Service, process: Process, tmp_path: Path) -> None:
    process.status, process.said = 1, b"a warning\nthese weights do not fit\n"
    done = typed("--onnx", tmp_path / "m.onnx")
    assert done.exit_code == 1
    assert "not exported: these weights do not fit (export_failed)" in done.stderr


def test_a_folder_that_is_not_there(service: Service, process: Process, tmp_path: Path) -> None:
    assert typed("--onnx", tmp_path / "nowhere" / "m.onnx").exit_code == 2
    assert typed().exit_code == 2
    assert process.given is None

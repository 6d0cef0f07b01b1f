"""What logs and metrics hold, and what a node sends: no picture's or lesion's name, and nothing that lets anybody in.

A real node process trains and evaluates on drawn lesions, at the most talkative level; a real auth process is asked all
that it answers, rightly and wrongly. Everything that they write and send is looked through.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from concilia_client_node import drawn, networks
from concilia_kit import http, keystore
from concilia_kit.http import call
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.training import (
    EVALUATE_TASK,
    TRAIN_TASK,
    Architecture,
    EvaluateTask,
    Evaluation,
    LocalTraining,
    TrainTask,
)
from eth_account import Account
from eth_account.messages import encode_defunct

from tests.unit.client_node import consortium_double

from . import sign_in_world

JOB = "ef" * 32
LOCAL = LocalTraining(epochs=1, batch_size=16, image_size=32, max_images=32)


# -------------------------------------------------------------------------------------------------------------- a node


@dataclass(frozen=True)
class Told:
    """What a node's life left elsewhere: its log, its metrics, and each request as path, headers and body."""

    names: frozenset[str]
    log: str
    metrics: str
    requests: tuple[bytes, ...]
    secrets: frozenset[str]
    kinds: frozenset[str]
    folder: str


def _recording(double_class: type) -> type:
    """The consortium double, which keeps every byte that it is sent."""

    class Recording(double_class):  # type: ignore[misc]  # the module is loaded by its path
        def app(self) -> Any:
            inner = super().app()
            self.sent: list[bytes] = []

            async def application(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] != "http":
                    await inner(scope, receive, send)
                    return
                head = b" ".join([scope["method"].encode(), scope["raw_path"], scope["query_string"]])
                kept = bytearray(head + b"\n" + b"\n".join(b": ".join(each) for each in scope["headers"]) + b"\n\n")

                async def received() -> Any:
                    message = await receive()
                    kept.extend(message.get("body", b""))
                    return message

                try:
                    await inner(scope, received, send)
                finally:
                    self.sent.append(bytes(kept))

            return application

    return Recording


def _until(what: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2400):
        if what():
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"the node did not come so far:\n{log.read_text()}")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Told:
    """A node asks for its role, is given it, trains a round and evaluates its model."""
    folder = tmp_path_factory.mktemp("told")
    data = folder / "lesions"
    drawn.write_drawn(data, images=560, seed=1)
    with (data / "HAM10000_metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = frozenset(row[column] for row in rows for column in ("image_id", "lesion_id"))
    account = keystore.create(folder / "key.json", folder / "password")
    port, log = free_port(), folder / "log"
    with contextlib.ExitStack() as stack:
        consortium = stack.enter_context(
            consortium_double.serve(_recording(consortium_double.ConsortiumDouble)(enrolled=False))
        )
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")},
            "CONCILIA_NODE_PORT": str(port),
            "CONCILIA_NODE_LOG_LEVEL": "DEBUG",
            **{f"CONCILIA_NODE_{name}_URL": consortium.url for name in ("AUTH", "MODEL", "CHAIN", "AGGREGATOR")},
            "CONCILIA_NODE_KEYSTORE": str(folder / "key.json"),
            "CONCILIA_NODE_PASSWORD_FILE": str(folder / "password"),
            "CONCILIA_NODE_DATA": str(data),
            "CONCILIA_NODE_SITE": "collection:drawn_west",
            "CONCILIA_NODE_DIRECTORY": str(folder / "node"),
        }
        torch.manual_seed(0)
        networks.save(networks.build(Architecture.MOBILENET_V2), folder / "base")
        base = consortium.keep((folder / "base").read_bytes())
        process = subprocess.Popen(
            [sys.executable, "-m", "concilia_client_node"], env=environment, stderr=stack.enter_context(log.open("w"))
        )
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        until = functools.partial(_until, process=process, log=log)
        until(lambda: consortium.applications)
        consortium.enrolled = True
        until(lambda: consortium.registrations)
        consortium.open_round(JOB, 1, base)
        train = TrainTask(
            job=JOB, round=1, architecture=Architecture.MOBILENET_V2, base=base, seed=1, deadline=2**40, local=LOCAL
        )
        message = consortium.message(TRAIN_TASK, train.model_dump(mode="json"))
        consortium.assigned.append({"name": TRAIN_TASK, **message})
        until(lambda: consortium.submissions)
        found = consortium.rounds[JOB, 1]
        consortium.rounds[JOB, 1] = found.model_copy(update={"status": RoundStatus.CLOSED, "global_digest": base})
        evaluate = EvaluateTask(
            job=JOB,
            round=1,
            architecture=Architecture.MOBILENET_V2,
            model=base,
            seed=1,
            image_size=32,
            evaluation=Evaluation(),
            calibrate=True,
        )
        message = consortium.message(EVALUATE_TASK, evaluate.model_dump(mode="json"))
        consortium.assigned[:] = [{"name": EVALUATE_TASK, **message}]
        until(lambda: consortium.evaluations and "evaluated" in log.read_text())
        shown = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30)
        assert shown.status_code == 200
        kinds = {
            kind
            for kind in ("registrations", "applications", "submissions", "evaluations", "progress", "upload_lengths")
            if getattr(consortium, kind)
        }
        requests = tuple(consortium.sent)
    bearers = {
        token.decode() for each in requests for token in re.findall(rb"(?im)^authorization: Bearer (\S+)$", each)
    }
    signatures = {
        word.decode() for each in requests if b"signature" in each for word in re.findall(rb"0x[0-9a-f]{130}", each)
    }
    password = (folder / "password").read_text().strip()
    secrets = frozenset({*bearers, *signatures, password, account.key.hex().removeprefix("0x")})
    return Told(names, log.read_text(), shown.text, requests, secrets, frozenset(kinds), str(data))


def test_what_a_node_sends_names_no_picture_or_lesion(told: Told) -> None:
    assert len(told.names) > 150
    assert len(told.kinds) == 6, "a kind of message was not sent, and so not looked at"
    everything = b"\n".join(told.requests).lower()
    assert b'"confusion"' in everything
    assert b'"calibration"' in everything
    assert [name for name in sorted(told.names) if name.lower().encode() in everything] == []
    for word in (b".jpg", b".csv", b"lesion_id", b"image_id", b"jfif", told.folder.lower().encode()):
        assert word not in everything, word


def test_a_nodes_log_and_metrics_name_no_picture_lesion_or_token(told: Told) -> None:
    for text, mark in ((told.log, '"event": "trained"'), (told.metrics, "concilia_node_images_total ")):
        assert mark in text, "this is not what was to be looked at"
        lowered = text.lower()
        assert [name for name in sorted(told.names) if name.lower() in lowered] == []
        assert [word for word in (".jpg", ".csv", "lesion_id", "image_id", "bearer") if word in lowered] == []
        assert [secret for secret in told.secrets if secret.lower() in lowered] == []
    assert len(told.secrets) >= 6


# ---------------------------------------------------------------------------------------------------------------- auth


def test_auths_log_holds_no_token_nonce_or_signature(
    redis_url: str, free_port: Callable[[], int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key, stranger = Account.create(), Account.create()
    secrets: set[str] = set()
    statuses: list[int] = []

    def keep(*values: str) -> None:
        secrets.update(value.removeprefix("0x") for value in values)

    def post(client: httpx.Client, path: str, **given: Any) -> httpx.Response:
        answer = client.post(path, **given)
        statuses.append(answer.status_code)
        return answer

    def challenge(client: httpx.Client, signer: Any = key) -> dict[str, str]:
        signed: dict[str, str] = sign_in_world.signed_challenge(client, key)
        if signer is not key:
            signed["signature"] = signer.sign_message(encode_defunct(text=signed["message"])).signature.to_0x_hex()
        nonce = re.search(r"^Nonce: (\S+)$", signed["message"], re.MULTILINE)
        assert nonce is not None
        keep(nonce[1], signed["signature"])
        return signed

    with (
        sign_in_world.chain_service(free_port()) as chain_url,
        sign_in_world.auth_service(
            free_port(), redis_url, chain_url, tmp_path / "keys", CONCILIA_AUTH_LOG_LEVEL="DEBUG"
        ) as url,
        http.client(url) as client,
    ):
        accepted = challenge(client)
        session = post(client, "/v1/sessions", json=accepted).json()["token"]
        bearer = {"Authorization": f"Bearer {session}"}
        post(client, "/v1/sessions", json=accepted)  # once is enough
        post(client, "/v1/sessions", json=challenge(client, stranger))
        post(client, "/v1/sessions", json={**challenge(client), "signature": "0x" + 8192 * "ab"})
        post(client, "/v1/sessions", json={**challenge(client), "message": f"Nonce: {'n' * 20}\n{session}"})
        post(client, "/v1/sessions", content=b"{" + json.dumps(challenge(client)).encode())
        access = post(client, "/v1/tokens", json={"audience": "auth"}, headers=bearer).json()["token"]
        keep(session, access, access.rsplit(".", 1)[1])
        asked = {"role": "clinician", "name": "Ada", "note": "please"}
        assert post(client, "/v1/applications", json=asked, headers={"Authorization": f"Bearer {access}"}).is_success
        post(client, "/v1/applications", json=asked, headers={"Authorization": f"Bearer {access}x"})
        post(client, "/v1/tokens", json={"audience": session}, headers=bearer)
        post(client, "/v1/tokens", json={"audience": "model"}, headers={"Authorization": f"Bearer {session}x"})
        report = {"csp-report": {"effective-directive": "img-src", "blocked-uri": f"https://evil.example/{session}"}}
        post(client, "/v1/csp-reports", json=report)

        signed_in = post(
            client, "/v1/browser-sessions", json=challenge(client), headers={"Origin": sign_in_world.ORIGIN}
        )
        cookie, csrf = signed_in.headers["Set-Cookie"].split(";")[0], signed_in.json()["csrf_token"]
        keep(cookie.partition("=")[2], csrf)
        post(client, "/v1/tokens", json={"audience": "model"}, headers={"Cookie": cookie})
        post(client, "/v1/tokens", json={"audience": "model"}, headers={"Cookie": cookie, "X-CSRF-Token": csrf + "x"})
        browsers = {"Cookie": cookie, "X-CSRF-Token": csrf}
        keep(post(client, "/v1/tokens", json={"audience": "model"}, headers=browsers).json()["token"])
        call(client, "DELETE", "/v1/sessions", headers=bearer)
    written = "".join(capfd.readouterr())
    assert statuses.count(201) == 3
    assert sum(status >= 400 for status in statuses) == 10
    assert written.count('"event": "signed in"') == 2
    assert '"event": "application filed"' in written
    assert "https://evil.example" in written
    assert len(secrets) >= 18
    assert [secret for secret in secrets if secret in written] == []
    assert key.address in written, "who signed in is in the log"
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    assert [
        (line["reason"], line["address"], line["source"]) for line in lines if line["event"] == "sign-in failed"
    ] == [
        ("nonce_unknown", key.address, "127.0.0.1"),
        ("signature_invalid", key.address, "127.0.0.1"),
        ("signature_invalid", key.address, "127.0.0.1"),
        ("nonce_unknown", None, "127.0.0.1"),
    ]
    refusals = [line for line in lines if line["event"] == "refused"]
    assert [(line["code"], line["route"]) for line in refusals if line["level"] == "info"] == [
        ("invalid_request", "/v1/sessions"),
        ("invalid_request", "/v1/tokens"),
    ]
    refused = [(line["code"], line["route"], line["source"]) for line in refusals if line["level"] == "warning"]
    assert refused == [
        ("token_invalid", "/v1/applications", "127.0.0.1"),
        ("session_unknown", "/v1/tokens", "127.0.0.1"),
        ("csrf_token_invalid", "/v1/tokens", "127.0.0.1"),
        ("csrf_token_invalid", "/v1/tokens", "127.0.0.1"),
    ]

"""The worker as it is started: health and metrics on a port of its own while it works off its queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from eth_account import Account


@pytest.fixture
def environment(tmp_path: Path, redis_url: str, free_port: Callable[[], int]) -> dict[str, str]:
    password, keystore = tmp_path / "password", tmp_path / "key.json"
    password.write_text("secret")
    keystore.write_text(json.dumps(Account.encrypt(Account.create().key, "secret", kdf="pbkdf2", iterations=1)))
    settings = {
        "PORT": str(free_port()),
        "DATABASE_URL": f"sqlite:///{tmp_path}/aggregator.db",
        "REDIS_URL": redis_url,
        "DIRECTORY": str(tmp_path / "work"),
        "KEYSTORE": str(keystore),
        "PASSWORD_FILE": str(password),
        **dict.fromkeys(("AUTH_URL", "MODEL_URL", "CHAIN_URL"), "http://127.0.0.1:1"),
    }
    return {**os.environ, **{f"CONCILIA_AGGREGATOR_{name}": value for name, value in settings.items()}}


@pytest.fixture
def worker(environment: dict[str, str]) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "concilia_aggregator", "worker"]
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{environment['CONCILIA_AGGREGATOR_PORT']}") as client,
    ):
        for _ in range(300):
            assert process.poll() is None, "the worker ended"
            try:
                client.get("/healthz")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        else:
            pytest.fail("the worker does not listen")
        yield client
        process.terminate()
        process.wait(20)


def test_the_worker_shows_health_and_metrics(worker: httpx.Client) -> None:
    assert worker.get("/healthz").json() == {"status": "ok"}
    ready = worker.get("/readyz").json()
    assert (ready["database"], ready["redis"], ready["verifications"]) == ("ok", "ok", "ok")
    text = worker.get("/metrics").text
    assert 'concilia_rounds_total{outcome="closed"} 0.0' in text
    assert 'service="aggregator-worker"' in text
    assert worker.get("/v1/jobs").status_code == 404


def test_a_port_that_is_taken_is_told_in_one_line(environment: dict[str, str], worker: httpx.Client) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "concilia_aggregator", "worker"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("cannot listen on 127.0.0.1:")

"""Sums made ahead by worker processes of their own, over a real Redis: the same bytes as one process folding all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
import safetensors.numpy
from concilia_aggregator import partials
from concilia_aggregator.artifacts import MountedArtifacts
from concilia_aggregator.folder import Folder
from concilia_aggregator.ledger import ChainLedger
from concilia_aggregator.screening import Limits
from concilia_aggregator.summing import QUEUE, Summing
from concilia_kit import queue
from concilia_kit.signing import Update
from concilia_kit.wire.chain import LedgerRound, LedgerUpdate, RoundStatus
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.strategy import Strategy, StrategyName
from eth_account import Account

COUNT = 40
NOBODY = httpx.Client(base_url="http://127.0.0.1:1")


class Store(MountedArtifacts):
    """The artifact store's folder; what is put goes there at once, without the model service."""

    def __init__(self, folder: Path) -> None:
        super().__init__(NOBODY, folder)
        self.folder = folder

    def add(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / digest[:2]).mkdir(parents=True, exist_ok=True)
        (self.folder / digest[:2] / digest).write_bytes(data)
        return digest

    def put(self, digest: str, path: Path) -> None:
        assert self.add(path.read_bytes()) == digest


def tensors(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    wide = (rng.normal(size=3000) * 2.0 ** rng.integers(-40, 3, 3000)).astype(np.float32)
    return safetensors.numpy.save(
        {"wide": wide, "n": np.array(seed, np.int64), "h": rng.normal(size=7).astype(np.float16)}
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


@pytest.fixture
def recorded(store: Store) -> LedgerRound:
    base = store.add(tensors(0))
    updates = []
    for number in range(1, COUNT + 1):
        update = Update(
            hospital=Account.from_key(number.to_bytes(32, "big")).address,
            job="a" * 64,
            round=1,
            base=base,
            digest=store.add(tensors(number)),
            samples=1000 + 37 * number,
            metrics="0" * 64,
        )
        updates.append(
            LedgerUpdate(update=update, signature="0x00", metrics=None, reason=None, transaction="0x", block=number)
        )
    return LedgerRound(
        job="a" * 64,
        round=1,
        status=RoundStatus.OPEN,
        base=base,
        deadline=int(time.time()) + 600,
        quorum=1,
        submitted=COUNT,
        rejected=0,
        global_digest=None,
        contributions=None,
        updates=tuple(updates),
    )


@pytest.fixture
def start(
    tmp_path: Path, redis_url: str, free_port: Callable[[], int]
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    password, keystore = tmp_path / "password", tmp_path / "key.json"
    password.write_text("secret")
    keystore.write_text(json.dumps(Account.encrypt(Account.create().key, "secret", kdf="pbkdf2", iterations=1)))
    started: list[subprocess.Popen[bytes]] = []

    def worker() -> subprocess.Popen[bytes]:
        settings = {
            "PORT": str(free_port()),
            "DATABASE_URL": "sqlite:////nowhere/never.db",
            "REDIS_URL": redis_url,
            "DIRECTORY": str(tmp_path / f"work-{len(started)}"),
            "ARTIFACTS_URL": f"file://{tmp_path}/artifacts",
            "PARTIALS": str(tmp_path / "sums"),
            "KEYSTORE": str(keystore),
            "PASSWORD_FILE": str(password),
            **dict.fromkeys(("AUTH_URL", "MODEL_URL", "CHAIN_URL"), "http://127.0.0.1:1"),
        }
        environment = {**os.environ, **{f"CONCILIA_AGGREGATOR_{name}": value for name, value in settings.items()}}
        with (tmp_path / f"worker-{len(started)}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "concilia_aggregator", "partials"], env=environment, stdout=log, stderr=log
                )
            )
        return started[-1]

    yield worker
    for process in started:
        process.terminate()
    for process in started:
        process.wait(30)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if what():
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    pytest.fail(log.read_text())


def folder_of(tmp_path: Path, store: Store, ahead: Summing | None) -> Folder:
    return Folder(store, ChainLedger(NOBODY), tmp_path / "work", Limits(10**6, 1e9), None, ahead)


@pytest.mark.parametrize("name", [StrategyName.FEDAVG, StrategyName.FEDPROX])
def test_workers_on_a_queue_of_their_own_make_the_same_bytes(
    tmp_path: Path, redis_url: str, store: Store, recorded: LedgerRound, start: Any, name: StrategyName
) -> None:
    spec = JobSpec(name="job", initial=recorded.base, strategy=Strategy(name=name))
    alone = folder_of(tmp_path, store, None)
    expected = alone.fold(alone.screen(recorded, {}), spec)

    summing = Summing(queue.application("aggregator", redis_url), tmp_path / "sums")
    folder = folder_of(tmp_path, store, summing)
    early = recorded.model_copy(update={"updates": recorded.updates[:20]})
    folder.screen(early, {})  # the round still trains
    screened = folder.screen(recorded, {})
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(QUEUE) == 2  # each full group once
    assert summing.ahead(screened).sums == ()
    assert folder.fold(screened, spec) == expected  # nobody serves the queue: the round does not wait for it

    workers = [start(), start()]
    wait_for(lambda: len(summing.ahead(screened).sums) == 2, workers[0], tmp_path / "worker-0.log")
    assert len(summing.ahead(screened).members) == 2 * partials.GROUP
    assert folder.fold(screened, spec) == expected
    folder.release(screened)
    assert not list((tmp_path / "sums").iterdir())


def test_an_update_that_is_not_what_was_signed_is_in_no_sum(
    tmp_path: Path, redis_url: str, store: Store, recorded: LedgerRound, start: Any
) -> None:
    summing = Summing(queue.application("aggregator", redis_url), tmp_path / "sums")
    folder = folder_of(tmp_path, store, summing)
    screened = folder.screen(recorded, {})
    victim = recorded.updates[3].update.digest
    path = store.folder / victim[:2] / victim
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    worker = start()
    wait_for(
        lambda: "partial sum not made" in (tmp_path / "worker-0.log").read_text(), worker, tmp_path / "worker-0.log"
    )
    wait_for(lambda: len(summing.ahead(screened).sums) == 1, worker, tmp_path / "worker-0.log")
    assert victim not in {each.digest for each in summing.ahead(screened).members}

"""One hospital's node as a real process: a real Redis, real HTTP to a consortium in memory, real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
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
import torch
from celery import Celery
from concilia_client_node import drawn, networks
from concilia_kit import encodings, keystore, queue
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import UpdateSubmission
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.queues import queue_of
from concilia_kit.wire.training import (
    EVALUATE_TASK,
    TRAIN_TASK,
    Architecture,
    EvaluateTask,
    Evaluation,
    LocalTraining,
    TrainTask,
)

pytestmark = pytest.mark.integration

JOB = "cd" * 32
LOCAL = LocalTraining(epochs=1, batch_size=16, image_size=32, max_images=48)
LONG = LOCAL.model_copy(update={"epochs": 100})
Start = Callable[..., contextlib.AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "lesions"
    drawn.write_drawn(folder, images=120, seed=1)
    return folder


@pytest.fixture
def environment(
    consortium: Any, data: Path, redis_url: str, free_port: Callable[[], int], tmp_path: Path
) -> dict[str, str]:
    consortium.broker_url = redis_url
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")},
        "CONCILIA_NODE_PORT": str(free_port()),
        "CONCILIA_NODE_BROKER_URL": redis_url,
        **{f"CONCILIA_NODE_{name}_URL": consortium.url for name in ("AUTH", "MODEL", "CHAIN", "AGGREGATOR")},
        "CONCILIA_NODE_KEYSTORE": str(tmp_path / "key.json"),
        "CONCILIA_NODE_PASSWORD_FILE": str(tmp_path / "password"),
        "CONCILIA_NODE_DATA": str(data),
        "CONCILIA_NODE_SITE": "collection:drawn_west",
        "CONCILIA_NODE_DIRECTORY": str(tmp_path / "node"),
    }


@pytest.fixture
def address(environment: dict[str, str]) -> str:
    account = keystore.create(
        Path(environment["CONCILIA_NODE_KEYSTORE"]), Path(environment["CONCILIA_NODE_PASSWORD_FILE"])
    )
    return str(account.address)


@pytest.fixture
def task(consortium: Any, tmp_path: Path) -> TrainTask:
    torch.manual_seed(0)
    networks.save(networks.build(Architecture.MOBILENET_V2), tmp_path / "base")
    base = consortium.keep((tmp_path / "base").read_bytes())
    consortium.open_round(JOB, 1, base)
    return TrainTask(
        job=JOB, round=1, architecture=Architecture.MOBILENET_V2, base=base, seed=1, deadline=2**40, local=LOCAL
    )


Send = Callable[[str, object], None]


@pytest.fixture
def to_queue(redis_url: str, address: str, consortium: Any) -> Iterator[Send]:
    broker: Celery = queue.application("aggregator", redis_url)
    yield lambda name, body: broker.send_task(name, kwargs=consortium.message(name, body), queue=queue_of(address))
    broker.close()


@pytest.fixture
def to_stand(consortium: Any) -> Send:
    """Tasks as the aggregator tells them, to who asks."""
    return lambda name, body: consortium.assigned.append({"name": name, **consortium.message(name, body)})


@pytest.fixture(params=["queue", "https"])
def send(request: pytest.FixtureRequest, to_queue: Send, to_stand: Send, environment: dict[str, str]) -> Send:
    """Tasks by the broker; or over HTTPS, to a node that knows of no broker."""
    if request.param == "queue":
        return to_queue
    environment["CONCILIA_NODE_BROKER_URL"] = ""
    return to_stand


@contextlib.contextmanager
def running(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "concilia_client_node"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        if process.poll() is not None:
            pytest.fail(f"the node ended with {process.returncode}: {process.communicate()[1]}")
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"waited in vain: {process.communicate()[1]}")


def training(consortium: Any) -> bool:
    return any(item.stage is Stage.TRAINING and item.fraction > 0 for item in consortium.progress)


def test_a_node_works_its_own_queue_and_ends_when_told(
    consortium: Any, environment: dict[str, str], address: str, task: TrainTask, send: Send, redis_url: str
) -> None:
    consortium.failures["contract"] = [Problem("broken", status=500)]
    send(TRAIN_TASK, {"job": "nonsense"})
    send(TRAIN_TASK, task.model_dump(mode="json"))
    evaluate = EvaluateTask(
        job=JOB,
        round=0,
        architecture=task.architecture,
        model=task.base,
        seed=1,
        image_size=32,
        evaluation=Evaluation(),
    )
    send(EVALUATE_TASK, evaluate.model_dump(mode="json"))
    with running(environment) as process:
        until(lambda: consortium.submissions and consortium.evaluations, process)
        assert UpdateSubmission.model_validate_json(consortium.submissions[0]).update.hospital == address
        until(lambda: [name for name, _ in consortium.registrations] == [address], process)
        ready = httpx.get(f"http://127.0.0.1:{environment['CONCILIA_NODE_PORT']}/readyz")
        source = "broker" if environment["CONCILIA_NODE_BROKER_URL"] else "tasks"
        assert (ready.status_code, ready.json()) == (200, {source: "ok", "data": "ok", "auth": "ok"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(f"{queue_of(address)}*")) == []
    assert consortium.calls.count("contract") == 4  # one in vain; who asks for each of two tasks; a submission
    assert len(consortium.submissions) == 1


def test_a_node_says_that_it_can_encode_and_sends_what_it_was_asked_for(
    consortium: Any, environment: dict[str, str], task: TrainTask, to_queue: Send, tmp_path: Path
) -> None:
    encoded = task.model_copy(update={"encoding": Encoding.parse("int8+zstd")})
    to_queue(TRAIN_TASK, encoded.model_dump(mode="json"))
    with running(environment) as process:
        until(lambda: consortium.submissions and consortium.registrations, process)
    assert set(consortium.registrations[0][1].encodings) == {"none", "float16", "int8", "topk", "zstd"}
    submission = UpdateSubmission.model_validate_json(consortium.submissions[0])
    assert submission.metrics.encoded is not None
    assert submission.metrics.encoded.bytes < 0.27 * submission.metrics.encoded.bytes_plain
    (tmp_path / "update").write_bytes(consortium.artifacts[submission.update.digest])
    base = TensorFile.open(tmp_path / "base")
    reader = encodings.reader(TensorFile.open(tmp_path / "update"), base)
    moved = [np.abs(reader.block(name, 0, 2**30) - base.flat(name)).max() for name in base if "weight" in name]
    assert max(moved) > 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_node_that_ends_in_the_middle_of_training_leaves_the_task_to_the_next(
    consortium: Any,
    environment: dict[str, str],
    task: TrainTask,
    send: Send,
    how: signal.Signals,
) -> None:
    send(TRAIN_TASK, task.model_copy(update={"local": LONG}).model_dump(mode="json"))
    with running(environment) as process:
        until(lambda: training(consortium), process)
        process.send_signal(how)
        assert process.wait(60) == (0 if how is signal.SIGTERM else -signal.SIGKILL)
    assert consortium.submissions == []
    consortium.progress.clear()
    with running(environment) as process:
        until(lambda: training(consortium), process)


def test_a_task_that_the_queue_lost_is_done_and_one_that_was_done_is_not_done_again(
    consortium: Any, environment: dict[str, str], task: TrainTask, to_stand: Send, to_queue: Send
) -> None:
    to_stand(TRAIN_TASK, task.model_dump(mode="json"))
    with running(environment) as process:
        until(lambda: consortium.submissions, process)
        asked = consortium.calls.count("tasks")
        until(lambda: consortium.calls.count("tasks") > asked + 1, process)
    assert len(consortium.submissions) == 1
    assert sum(item.stage is Stage.SUBMITTED for item in consortium.progress) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CONCILIA_NODE_SITE": "everywhere"}, "CONCILIA_NODE_SITE: "),
        ({"CONCILIA_NODE_SITE": "collection:drawn_nowhere"}, "collection:drawn_north"),
        ({"CONCILIA_NODE_DATA": "/nonexistent"}, "/nonexistent is no folder"),
        ({"CONCILIA_NODE_PASSWORD_FILE": "/nonexistent/password"}, "/nonexistent/password is missing"),
    ],
)
def test_what_a_node_cannot_start_with_is_one_line(
    environment: dict[str, str], address: str, change: dict[str, str], words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "concilia_client_node"],
        env={**environment, **change},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


def test_a_port_that_is_taken_is_one_line(environment: dict[str, str], address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(environment["CONCILIA_NODE_PORT"])))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "concilia_client_node"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert f"port {environment['CONCILIA_NODE_PORT']}" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr

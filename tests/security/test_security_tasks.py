"""A node works at what a coordinator asks for, with the model that the ledger has, and at nothing else.

A real node process, by the queue and over HTTPS; what it refuses it says on its log and to the aggregator.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from celery import Celery
from concilia_client_node import drawn, networks
from concilia_kit import keystore, queue, signing
from concilia_kit.wire.chain import RoundStatus
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
    order_of,
)
from eth_account import Account

from tests.unit.client_node import consortium_double

JOB = "cd" * 32
LOCAL = LocalTraining(epochs=1, batch_size=16, image_size=32, max_images=32)
Message = dict[str, Any]


@pytest.fixture
def consortium(redis_url: str) -> Iterator[Any]:
    with consortium_double.serve(consortium_double.ConsortiumDouble(broker_url=redis_url)) as double:
        yield double


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "lesions"
    drawn.write_drawn(folder, images=120, seed=1)
    return folder


class Node:
    """A node process, and the ways in which tasks reach it."""

    def __init__(
        self, consortium: Any, process: subprocess.Popen[bytes], log: Path, broker: Celery | None, address: str
    ) -> None:
        self.process = process
        self.consortium = consortium
        self.log = log
        self.address = address
        self._broker = broker

    def told(self, name: str, message: Message) -> None:
        if self._broker is None:
            self.consortium.assigned.append({"name": name, **message})
        else:
            self._broker.send_task(name, kwargs=message, queue=queue_of(self.address))

    def refuses(self, reason: str) -> None:
        """Wait until the node says so, on its log and to the aggregator; nothing came of the task."""
        self.says(Stage.REFUSED, reason)
        assert self.consortium.submissions == []
        assert self.consortium.evaluations == []
        self.consortium.progress.clear()

    def says(self, stage: Stage, words: str) -> None:
        for _ in range(1200):
            told = [item for item in self.consortium.progress if item.stage is stage and words in item.detail]
            if told and words in self.log.read_text():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"{stage} {words!r} was not said: {self.consortium.progress}\n{self.log.read_text()}")


@pytest.fixture(params=["queue", "https"])
def node(
    request: pytest.FixtureRequest,
    consortium: Any,
    data: Path,
    redis_url: str,
    free_port: Callable[[], int],
    tmp_path: Path,
) -> Iterator[Node]:
    account = keystore.create(tmp_path / "key.json", tmp_path / "password")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")},
        "CONCILIA_NODE_PORT": str(free_port()),
        "CONCILIA_NODE_BROKER_URL": redis_url if request.param == "queue" else "",
        **{f"CONCILIA_NODE_{name}_URL": consortium.url for name in ("AUTH", "MODEL", "CHAIN", "AGGREGATOR")},
        "CONCILIA_NODE_KEYSTORE": str(tmp_path / "key.json"),
        "CONCILIA_NODE_PASSWORD_FILE": str(tmp_path / "password"),
        "CONCILIA_NODE_DATA": str(data),
        "CONCILIA_NODE_SITE": "collection:drawn_west",
        "CONCILIA_NODE_DIRECTORY": str(tmp_path / "node"),
    }
    log = tmp_path / "log"
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(queue.application("aggregator", redis_url)) if request.param == "queue" else None
        command = [sys.executable, "-m", "concilia_client_node"]
        process = subprocess.Popen(command, env=environment, stderr=stack.enter_context(log.open("w")))
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        yield Node(consortium, process, log, broker, account.address)


def weights(architecture: Architecture, path: Path) -> bytes:
    torch.manual_seed(0)
    networks.save(networks.build(architecture), path)
    return path.read_bytes()


@pytest.fixture
def task(consortium: Any, tmp_path: Path) -> TrainTask:
    base = consortium.keep(weights(Architecture.MOBILENET_V2, tmp_path / "base"))
    consortium.open_round(JOB, 1, base)
    return TrainTask(
        job=JOB, round=1, architecture=Architecture.MOBILENET_V2, base=base, seed=1, deadline=2**40, local=LOCAL
    )


def dumped(task: Any) -> Message:
    return dict(task.model_dump(mode="json"))


def test_a_task_that_was_changed_or_that_no_coordinator_signed_is_refused(node: Node, task: TrainTask) -> None:
    consortium = node.consortium
    signed = consortium.message(TRAIN_TASK, dumped(task))
    changed = dumped(task.model_copy(update={"local": LOCAL.model_copy(update={"epochs": 100})}))
    node.told(TRAIN_TASK, {**signed, "task": changed})
    node.refuses("no coordinator asks for this task")
    evaluation = EvaluateTask(
        job=JOB,
        round=0,
        architecture=task.architecture,
        model=task.base,
        seed=1,
        image_size=32,
        evaluation=Evaluation(),
    )
    node.told(EVALUATE_TASK, {"task": dumped(evaluation), "signature": signed["signature"]})
    node.refuses("no coordinator asks for this task")
    other = task.model_copy(update={"seed": 2})
    stranger = signing.sign(order_of(other), consortium_double.DOMAIN, Account.create())
    node.told(TRAIN_TASK, {"task": dumped(other), "signature": stranger})
    node.refuses("no coordinator asks for this task")
    node.told(TRAIN_TASK, {"task": dumped(task.model_copy(update={"seed": 3})), "signature": "0x" + "00" * 65})
    node.refuses("the task's signature is none")
    consortium.coordinates = False  # the role was taken
    last = task.model_copy(update={"seed": 4})
    node.told(TRAIN_TASK, consortium.message(TRAIN_TASK, dumped(last)))
    node.refuses("no coordinator asks for this task")
    consortium.coordinates = True
    node.told(TRAIN_TASK, signed)
    node.says(Stage.SUBMITTED, "")


def test_a_model_that_is_not_the_ledger_s_is_refused(node: Node, task: TrainTask, tmp_path: Path) -> None:
    consortium = node.consortium
    crafted = consortium.keep(weights(Architecture.MOBILENET_V2, tmp_path / "crafted") + b"")
    other = consortium.keep(weights(Architecture.RESNET18, tmp_path / "other"))
    asked = task.model_copy(update={"base": other})
    node.told(TRAIN_TASK, consortium.message(TRAIN_TASK, dumped(asked)))
    node.refuses("the ledger has another base model for this round")
    consortium.open_round(JOB, 2, crafted)
    consortium.rounds[JOB, 2] = consortium.rounds[JOB, 2].model_copy(
        update={"status": RoundStatus.CLOSED, "global_digest": crafted}
    )
    evaluation = EvaluateTask(
        job=JOB, round=2, architecture=task.architecture, model=other, seed=1, image_size=32, evaluation=Evaluation()
    )
    node.told(EVALUATE_TASK, consortium.message(EVALUATE_TASK, dumped(evaluation)))
    node.refuses("the ledger has another model of this round")


def test_a_base_model_whose_bytes_were_changed_is_refused_until_the_right_ones_are_there(
    node: Node, task: TrainTask
) -> None:
    consortium = node.consortium
    right = consortium.artifacts[task.base]
    consortium.artifacts[task.base] = right[:-1] + bytes([right[-1] ^ 1])
    node.told(TRAIN_TASK, consortium.message(TRAIN_TASK, dumped(task)))
    node.says(Stage.DOWNLOADING, "the base model is not what the task names")
    assert consortium.submissions == []
    consortium.put_aside.discard(task.base)
    consortium.keep(right)
    node.says(Stage.SUBMITTED, "")


def test_a_model_of_another_architecture_is_refused(node: Node, task: TrainTask, tmp_path: Path) -> None:
    consortium = node.consortium
    other = consortium.keep(weights(Architecture.RESNET18, tmp_path / "other"))
    consortium.open_round(JOB, 1, other)
    node.told(TRAIN_TASK, consortium.message(TRAIN_TASK, dumped(task.model_copy(update={"base": other}))))
    node.refuses("it does not fit mobilenet_v2")
    node.told(TRAIN_TASK, {"task": {**dumped(task), "architecture": "a_trojan"}, "signature": "0x00"})
    for _ in range(600):
        if "malformed task" in node.log.read_text():
            return
        time.sleep(0.05)
    pytest.fail(node.log.read_text())


def test_the_credential_for_the_broker_is_the_node_s_own(
    node: Node, task: TrainTask, redis_url: str, request: pytest.FixtureRequest
) -> None:
    node.told(TRAIN_TASK, node.consortium.message(TRAIN_TASK, dumped(task)))
    node.says(Stage.SUBMITTED, "")
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        users = {each["user"] for each in client.client_list() if "0x" in each["user"]}
    by_queue = "queue" in request.node.name
    assert users == ({f"node.{node.address.lower()}"} if by_queue else set())

"""Several node processes at once: replicas that claim sites, and replicas of one hospital that share its queue."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import torch
from celery import Celery
from concilia_client_node import drawn, networks, redelivery
from concilia_kit import keystore, queue
from concilia_kit.wire.chain import UpdateSubmission
from concilia_kit.wire.queues import queue_of
from concilia_kit.wire.training import TRAIN_TASK, Architecture, LocalTraining, TrainTask

pytestmark = pytest.mark.integration

LOCAL = LocalTraining(epochs=1, batch_size=16, image_size=32, max_images=48)
LONG = LOCAL.model_copy(update={"epochs": 100, "image_size": 160})  # minutes
JOBS = [f"{number:02x}" * 32 for number in range(1, 7)]
HOLD = """
import sys, time
from pathlib import Path
from concilia_client_node import claim
slot = claim.wait_for(Path(sys.argv[1]), int(sys.argv[2]), lambda: time.sleep(0.05))
print(slot.number, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claim") / "lesions"
    drawn.write_drawn(folder, images=120, seed=1)
    return folder


@dataclass
class Replica:
    process: subprocess.Popen[str]
    port: int
    log: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def ready(self) -> dict[str, str] | None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=2)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def works(self) -> bool:
        return "broker" in (self.ready() or {})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


Start = Callable[..., Replica]


@pytest.fixture
def start(consortium: Any, data: Path, redis_url: str, free_port: Callable[[], int], tmp_path: Path) -> Iterator[Start]:
    """Start a replica: the module to run and its further settings."""
    consortium.broker_url = redis_url
    with contextlib.ExitStack() as stack:
        number = iter(range(100))

        def make(module: str, **settings: object) -> Replica:
            port = free_port()
            log = tmp_path / f"{next(number)}.log"
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")},
                "CONCILIA_NODE_PORT": str(port),
                "CONCILIA_NODE_BROKER_URL": redis_url,
                **{f"CONCILIA_NODE_{name}_URL": consortium.url for name in ("AUTH", "MODEL", "CHAIN", "AGGREGATOR")},
                "CONCILIA_NODE_DATA": str(data),
                **{f"CONCILIA_{name}": str(value) for name, value in settings.items()},
            }
            with log.open("w") as file:
                process = subprocess.Popen([sys.executable, "-m", module], env=environment, stderr=file, text=True)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            return Replica(process, port, log)

        yield make


def until(condition: Callable[[], object], *replicas: Replica, seconds: float = 120) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        for replica in replicas:
            if replica.process.poll() is not None:
                pytest.fail(f"a replica ended with {replica.process.returncode}: {replica.log.read_text()}")
        time.sleep(0.05)
    pytest.fail("waited in vain:\n" + "\n---\n".join(replica.log.read_text() for replica in replicas))


# ---------------------------------------------------------------------------------------------------------------- slots


@contextlib.contextmanager
def holder(directory: Path, slots: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(directory), str(slots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def slot_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_slot_is_one_process_s_own_until_it_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path, 2) as first:
        assert slot_of(first) == 0
        with holder(tmp_path, 2) as second:
            assert slot_of(second) == 1
            with holder(tmp_path, 2) as third:
                first.send_signal(signal.SIGKILL)
                first.wait(10)
                assert slot_of(third) == 0
                second.send_signal(signal.SIGKILL)
                third.send_signal(signal.SIGKILL)
                second.wait(10), third.wait(10)
                with holder(tmp_path, 2) as last:  # the lowest of the free ones
                    assert slot_of(last) == 0


def test_replicas_claim_sites_stand_by_and_come_back_as_who_they_were(
    consortium: Any, start: Start, tmp_path: Path
) -> None:
    settings = {
        "CLAIM_DIRECTORY": tmp_path / "identities",
        "CLAIM_SLOTS": 2,
        "CLAIM_SITES": "iid:{slot}/{slots}",
    }

    def names() -> dict[str, str]:
        return {registration.site: address for address, registration in consortium.registrations}

    first = start("concilia_client_node.claim", **settings)
    until(lambda: "site-0" in names() and first.works(), first)
    second = start("concilia_client_node.claim", **settings)
    until(lambda: "site-1" in names(), first, second)
    third = start("concilia_client_node.claim", **settings)
    until(lambda: third.ready() == {"standby": "ok"}, first, second, third)
    addresses = names()
    assert len(set(addresses.values())) == 2
    assert len(third.events("every slot is taken, standing by")) == 1

    consortium.registrations.clear()
    first.kill()
    until(lambda: "site-0" in names() and third.works(), second, third)
    assert names()["site-0"] == addresses["site-0"]
    kept = json.loads((tmp_path / "identities" / "slot-0" / "keystore.json").read_text())
    assert kept["address"].lower() == addresses["site-0"].lower().removeprefix("0x")
    third.process.terminate()
    assert third.process.wait(15) == 0


def test_a_replica_that_stands_by_ends_when_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "identities").mkdir()
    with holder(tmp_path / "identities", 1) as owner:
        assert slot_of(owner) == 0
        replica = start("concilia_client_node.claim", CLAIM_DIRECTORY=tmp_path / "identities", CLAIM_SLOTS=1)
        until(lambda: replica.ready() == {"standby": "ok"}, replica)
        replica.process.terminate()
        assert replica.process.wait(10) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CLAIM_SITES": "iid:0/4"}, "CONCILIA_CLAIM_SITES: "),
        ({"CLAIM_SLOTS": "0"}, "CONCILIA_CLAIM_SLOTS: "),
        ({"CLAIM_DIRECTORY": "/dev/null"}, "/dev/null/slot-0: Not a directory"),
        ({"NODE_DATA": "/nonexistent"}, "/nonexistent is no folder"),
        ({"NODE_BATCH": "x", "NODE_THREADS": "none"}, "CONCILIA_NODE_THREADS: "),
    ],
)
def test_what_a_replica_cannot_start_with_is_one_line(
    start: Start, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    replica = start("concilia_client_node.claim", **{"CLAIM_DIRECTORY": tmp_path / "identities", **change})
    assert replica.process.wait(60) == 2
    (line,) = [line for line in replica.log.read_text().splitlines() if not line.startswith("{")]  # but for its log
    assert words in line


# ------------------------------------------------------------------------------------------ one hospital, two processes


@pytest.fixture
def hospital(tmp_path: Path) -> dict[str, object]:
    account = keystore.create(tmp_path / "key.json", tmp_path / "password")
    return {
        "address": account.address,
        "NODE_KEYSTORE": tmp_path / "key.json",
        "NODE_PASSWORD_FILE": tmp_path / "password",
        "NODE_SITE": "collection:drawn_west",
    }


@pytest.fixture
def tasks(consortium: Any, tmp_path: Path) -> list[TrainTask]:
    torch.manual_seed(0)
    networks.save(networks.build(Architecture.MOBILENET_V2), tmp_path / "base")
    base = consortium.keep((tmp_path / "base").read_bytes())
    for job in JOBS:
        consortium.open_round(job, 1, base)
    return [
        TrainTask(
            job=job, round=1, architecture=Architecture.MOBILENET_V2, base=base, seed=1, deadline=2**40, local=LOCAL
        )
        for job in JOBS
    ]


@pytest.fixture
def send(redis_url: str, hospital: dict[str, object], consortium: Any) -> Iterator[Callable[[TrainTask], object]]:
    broker: Celery = queue.application("aggregator", redis_url)
    where = queue_of(str(hospital["address"]))
    yield lambda task: broker.send_task(
        TRAIN_TASK, kwargs=consortium.message(TRAIN_TASK, task.model_dump(mode="json")), queue=where
    )
    broker.close()


@pytest.fixture
def broker(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def taken(broker: Any, where: str) -> dict[str, int]:
    """How many tasks each process has taken and not finished, by its list."""
    return {name: broker.hlen(name) for name in broker.scan_iter(f"{where}.unacked.*")}


def settings_of(hospital: dict[str, object], directory: Path) -> dict[str, object]:
    named = {name: value for name, value in hospital.items() if name != "address"}
    return {**named, "NODE_DIRECTORY": directory}


@pytest.mark.parametrize("shared", [True, False], ids=["one folder", "a folder each"])
def test_two_processes_of_one_hospital_do_each_task_once(
    consortium: Any,
    start: Start,
    tmp_path: Path,
    hospital: dict[str, object],
    tasks: list[TrainTask],
    send: Callable[[TrainTask], object],
    broker: Any,
    shared: bool,
) -> None:
    folders = ["work", "work"] if shared else ["one", "other"]
    replicas = [start("concilia_client_node", **settings_of(hospital, tmp_path / name)) for name in folders]
    until(lambda: all(replica.works() for replica in replicas), *replicas)
    for task in tasks:
        send(task)
    until(lambda: len(consortium.submissions) >= len(JOBS), *replicas)
    where = queue_of(str(hospital["address"]))
    until(lambda: not taken(broker, where) and not broker.llen(where), *replicas)
    submitted = [UpdateSubmission.model_validate_json(item).update.job for item in consortium.submissions]
    assert sorted(submitted) == JOBS
    trained = [[event["job"] for event in replica.events("trained")] for replica in replicas]
    assert all(trained), "one of the two did nothing"
    assert Counter(trained[0] + trained[1]) == Counter(JOBS)
    for replica in replicas:
        replica.process.terminate()
    assert [replica.process.wait(15) for replica in replicas] == [0, 0]
    assert list(broker.scan_iter(f"{where}*")) == []


def test_a_killed_process_s_task_goes_to_its_sibling_and_a_living_one_s_stays(
    consortium: Any,
    start: Start,
    tmp_path: Path,
    hospital: dict[str, object],
    tasks: list[TrainTask],
    send: Callable[[TrainTask], object],
    broker: Any,
) -> None:
    where = queue_of(str(hospital["address"]))
    send(tasks[0].model_copy(update={"local": LONG}))
    first = start("concilia_client_node", **settings_of(hospital, tmp_path / "work"))
    until(lambda: any(item.fraction > 0 for item in consortium.progress), first)
    before = taken(broker, where)
    assert list(before.values()) == [1]

    second = start("concilia_client_node", **settings_of(hospital, tmp_path / "work"))
    until(second.works, first, second)
    own = next(iter(before)).rpartition(".")[2]
    beats = f"{where}.beats"

    def looked_long_enough() -> bool:
        return any(int(n) > 2 * redelivery.DEAD_AFTER for name, n in broker.hgetall(beats).items() if name != own)

    until(looked_long_enough, first, second)
    assert taken(broker, where) == before, "a living sibling's task was taken from it"
    assert broker.llen(where) == 0
    assert consortium.submissions == []

    first.kill()
    consortium.progress.clear()
    until(lambda: any(item.fraction > 0 for item in consortium.progress), second)
    assert list(taken(broker, where).values()) == [1]
    assert taken(broker, where) != before

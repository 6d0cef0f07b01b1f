"""Constructs one hospital's node: its health port, its presence, and its worker."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
import torch
from celery import Celery, signals
from concilia_kit import http, keystore, logs, metrics, queue, web
from concilia_kit.consuming import ConsumingWatch
from concilia_kit.health import Check
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.queues import OWN_QUEUE, keys_of, queue_of
from fastapi import FastAPI

from concilia_client_node import layouts, redelivery, tasks
from concilia_client_node.broker import TRANSPORT, Credentials
from concilia_client_node.budget import Budget
from concilia_client_node.consortium import Consortium
from concilia_client_node.floors import Floors
from concilia_client_node.health import Served
from concilia_client_node.kept_split import KeptSplit
from concilia_client_node.local_data import LocalData
from concilia_client_node.metrics import NodeMetrics
from concilia_client_node.polling import Polling
from concilia_client_node.presence import Heartbeat, ProgressReporter
from concilia_client_node.redelivery import Siblings
from concilia_client_node.reminders import Reminders
from concilia_client_node.service import Hospital
from concilia_client_node.settings import NodeSettings, Precision
from concilia_client_node.store import NodeFolder
from concilia_client_node.torch_trainer import TorchTrainer

STOP_SECONDS = 4.0  # from the signal to the end, whatever a call may be waiting for
_BROKER_SECONDS = 5.0

_log = logs.get(__name__)


@dataclass(frozen=True)
class Queued:
    """What a node that has a queue at the broker takes its tasks with."""

    worker: Celery
    queue: str
    siblings: Siblings
    reminders: Reminders
    watch: ConsumingWatch


@dataclass(frozen=True)
class Node:
    """Everything a node is made of; nothing runs yet. Its tasks come by a queue, or are asked for over HTTPS."""

    tasks: Queued | Polling
    device: torch.device
    health: FastAPI
    hospital: Hospital
    heartbeat: Heartbeat
    stop: threading.Event


def build(settings: NodeSettings) -> Node:
    """Read key and data, construct the rest. Raises `KeystoreError`, `DatasetError` and `OSError`."""
    account = keystore.load(settings.keystore, settings.password_file)
    folder = NodeFolder(settings.directory)
    folder.open()
    declaration = layouts.declared(settings.classification)
    split = KeptSplit(settings.data, settings.directory, declaration)
    site = split.settle(settings.choice, settings.split_seed, settings.unreadable_share, anew=settings.split_anew)
    data = LocalData(
        site, settings.site_name or site.name[:64], folder.scratch, settings.threads, settings.unreadable_share
    )
    stop = threading.Event()
    auth = http.client(settings.auth_url)
    wallets = {audience: http.WalletAuth(auth, account, audience) for audience in Audience}
    consortium = Consortium(
        model=http.client(settings.model_url, wallets[Audience.MODEL]),
        chain=http.client(settings.chain_url, wallets[Audience.CHAIN]),
        aggregator=http.client(settings.aggregator_url, wallets[Audience.AGGREGATOR]),
        auth=http.client(settings.auth_url, wallets[Audience.AUTH]),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    registry = metrics.registry()
    hospital = Hospital(
        account=account,
        consortium=consortium,
        trainer=TorchTrainer(data, device, settings.threads, mixed=_mixed(device, settings.precision)),
        folder=folder,
        reporter=ProgressReporter(consortium.progress),
        stop=stop,
        classification=declaration.classification,
        metrics=NodeMetrics(registry),
        floors=floors_of(settings),
        budget=budget_of(settings),
    )
    heartbeat = Heartbeat(
        account.address,
        data.registration,
        consortium.register,
        lambda: wallets[Audience.AGGREGATOR].token(fresh=True),
        consortium.apply,
        stop,
    )
    taking, source = _queued(settings, hospital) if settings.broker_url else _polling(hospital)
    health = web.application(
        "Concilia client node",
        ready={
            **source,
            "data": lambda: layouts.require(settings.data, declaration.layout),
            "auth": lambda: http.call(auth, "GET", "/healthz", retry_seconds=0),
        },
        registry=registry,
    )
    return Node(taking, device, health, hospital, heartbeat, stop)


def floors_of(settings: NodeSettings) -> Floors:
    """What a hospital does not go below."""
    return Floors(settings.min_batch_size, settings.min_lesions, settings.min_steps, settings.secure_only)


def budget_of(settings: NodeSettings) -> Budget:
    """What a hospital does not spend more of."""
    return Budget(settings.epsilon_per_job, settings.epsilon_total, settings.delta, settings.central_noise)


def _mixed(device: torch.device, precision: Precision) -> bool:
    """Whether training multiplies in bfloat16."""
    if precision is Precision.AUTO:
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision is Precision.BFLOAT16


def _polling(hospital: Hospital) -> tuple[Polling, dict[str, Check]]:
    address = hospital.account.address
    polling = Polling(partial(hospital.consortium.tasks, address), hospital, hospital.stop)
    return polling, {"tasks": polling.check}


def _queued(settings: NodeSettings, hospital: Hospital) -> tuple[Queued, dict[str, Check]]:
    address = hospital.account.address
    prefix, process = keys_of(address), redelivery.process_name()
    credentials = Credentials(hospital.consortium.broker_credential)
    worker = queue.application("client-node", settings.broker_url)
    worker.conf.update(
        task_default_queue=OWN_QUEUE,
        broker_transport=TRANSPORT,
        broker_transport_options={
            **redelivery.transport_options(prefix, OWN_QUEUE, process),
            "credentials": credentials,
        },
    )
    tasks.register(worker, hospital, OWN_QUEUE)
    broker = redis.Redis.from_url(
        settings.broker_url,
        credential_provider=credentials,
        socket_timeout=_BROKER_SECONDS,
        socket_connect_timeout=_BROKER_SECONDS,
    )
    siblings = Siblings(worker, prefix, OWN_QUEUE, process, broker, refused=credentials.refused)
    ask = partial(hospital.consortium.tasks, address)
    reminders = Reminders(ask, siblings.idle, hospital, worker, OWN_QUEUE, hospital.stop)
    watch = ConsumingWatch(broker, queue_of(address))
    return Queued(worker, OWN_QUEUE, siblings, reminders, watch), {"broker": broker.ping}


def run(node: Node, listening: socket.socket) -> int:
    """Work until SIGTERM or SIGINT; the exit code."""
    Served(node.health, listening)
    node.hospital.reporter.start()
    node.heartbeat.start()
    if isinstance(node.tasks, Polling):
        _log.info("node starts", tasks="over HTTPS", device=str(node.device))
        code = _poll(node.tasks, node.stop)
    else:
        _log.info("node starts", queue=node.tasks.queue, device=str(node.device))
        code = _consume(node.tasks, node.stop)
    node.hospital.reporter.close(1.0)
    return code


def _poll(polling: Polling, stop: threading.Event) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=polling.run, name="polling", daemon=True).start()
    stop.wait()
    # A question that is open is left open; work that is under way looks at `stop` and ends.
    until = time.monotonic() + STOP_SECONDS
    while polling.is_working and time.monotonic() < until:
        time.sleep(0.05)
    return 0


def _consume(queued: Queued, stop: threading.Event) -> int:
    for helping in (queued.siblings, queued.reminders, queued.watch):
        helping.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # nothing is in hand yet; Celery sets its own
    queued.siblings.known.wait()
    signals.worker_shutting_down.connect(_on_signal(stop), weak=False)
    # Connecting to this signal keeps Celery from setting up logging of its own.
    signals.setup_logging.connect(_logging_is_set_up, weak=False)
    # Workers that tell each other of themselves do so on channels, which a hospital's user has none of.
    worker = queued.worker.Worker(
        pool="threads",
        concurrency=1,
        queues=[queued.queue],
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
    )
    worker.start()
    queued.watch.stop()
    queued.siblings.leave()
    return int(worker.exitcode or 0)


def _on_signal(stop: threading.Event) -> Any:
    def shutting_down(**_: Any) -> None:
        stop.set()
        # A call that hangs must not keep the process: what it was doing is put back by a sibling or the next start.
        last_resort = threading.Timer(STOP_SECONDS, os._exit, [0])
        last_resort.daemon = True
        last_resort.start()

    return shutting_down


def _logging_is_set_up(**_: Any) -> None:
    """The kit did it."""

"""A hospital's node as it runs, but for the training: it adds a constant to every value, and counts no lesions.

`python -m benchmarks.hospital STACK INDEX PORT`: the stack's folder, which node of it, the stack's first port. Queue,
tokens, downloads, uploads, signatures and submissions are the node's own code.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from celery import signals
from concilia.stack.layout import Layout
from concilia_client_node import redelivery, tasks
from concilia_client_node.broker import TRANSPORT, Credentials
from concilia_client_node.consortium import Consortium
from concilia_client_node.presence import Heartbeat, ProgressReporter
from concilia_client_node.service import Hospital
from concilia_client_node.store import NodeFolder
from concilia_client_node.trainer import NOTHING, Carried, Check, Counts, Extent, Outcome, Tensors
from concilia_kit import http, keystore, logs, queue
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.queues import OWN_QUEUE, keys_of
from concilia_kit.wire.training import SCORE_BINS, Architecture, Evaluation, LocalTraining, Personal

from benchmarks.peers.payload import STEP

IMAGES = 100


class Constant:
    """A `Trainer` that costs one addition a value."""

    skipped_images = 0

    def extent(self, local: LocalTraining) -> Extent:
        """What its training says that it was on."""
        return Extent(IMAGES, IMAGES)

    def prepare(self, image_size: int, check: Check) -> None:
        """Nothing to prepare."""

    def train(
        self,
        architecture: Architecture,
        base: Path,
        local: LocalTraining,
        seed: int,
        progress: Callable[[float], None],
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
    ) -> tuple[Outcome, Tensors]:
        """The base, each value a constant higher."""
        file = TensorFile.open(base)
        return Outcome(0.0, 0.0, IMAGES, IMAGES), {name: file.tensor(name) + STEP for name in file}

    def personal(self, architecture: Architecture, which: Personal) -> frozenset[str]:
        """None."""
        return frozenset()

    def evaluate(
        self,
        architecture: Architecture,
        model: Path,
        image_size: int,
        limits: Evaluation,
        seed: int,
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
        calibrate: bool = False,
    ) -> tuple[Counts, int]:
        """No lesion was looked at."""
        rows = ((0,) * len(CLASSES),) * len(CLASSES)
        bins = ((0,) * SCORE_BINS,) * len(CLASSES)
        return Counts(rows, bins, bins, 0.0, 0, 0), 0


def main(directory: Path, index: int, port: int) -> None:
    """Work until SIGTERM."""
    logs.configure("node", "text", "INFO")
    layout, name = Layout(directory, port), f"node-{index}"
    account = keystore.load(layout.keystore(name), layout.keystore(name).with_suffix(".password"))
    folder = NodeFolder(directory / name)
    folder.open()
    stop = threading.Event()
    auth = http.client(layout.url("auth"))
    wallets = {audience: http.WalletAuth(auth, account, audience) for audience in Audience}
    consortium = Consortium(
        model=http.client(layout.url("model"), wallets[Audience.MODEL]),
        chain=http.client(layout.url("chain"), wallets[Audience.CHAIN]),
        aggregator=http.client(layout.url("aggregator"), wallets[Audience.AGGREGATOR]),
        auth=http.client(layout.url("auth"), wallets[Audience.AUTH]),
    )
    hospital = Hospital(account, consortium, Constant(), folder, ProgressReporter(consortium.progress), stop)
    counts = (IMAGES, *(0 for _ in CLASSES[1:]))
    registration = NodeRegistration(
        site=name,
        source="no pictures",
        training_images=counts,
        held_out_images=counts,
        training_lesions=IMAGES,
        held_out_lesions=IMAGES,
        overlapping_lesions=0,
        skipped_images=0,
    )
    heartbeat = Heartbeat(
        account.address,
        lambda: registration,
        consortium.register,
        lambda: wallets[Audience.AGGREGATOR].token(fresh=True),
        consortium.apply,
        stop,
    )
    worker = queue.application("client-node", f"redis://127.0.0.1:{layout.port_of('redis')}/0")
    options = redelivery.transport_options(keys_of(account.address), OWN_QUEUE, redelivery.process_name())
    worker.conf.update(
        task_default_queue=OWN_QUEUE,
        broker_transport=TRANSPORT,
        broker_transport_options={**options, "credentials": Credentials(consortium.broker_credential)},
    )
    tasks.register(worker, hospital, OWN_QUEUE)
    hospital.reporter.start()
    heartbeat.start()
    signals.setup_logging.connect(_logging_is_set_up, weak=False)
    alone = {"without_mingle": True, "without_gossip": True, "without_heartbeat": True}
    worker.Worker(pool="threads", concurrency=1, queues=[OWN_QUEUE], **alone).start()


def _logging_is_set_up(**_: Any) -> None:
    """The kit did it."""


if __name__ == "__main__":
    np.seterr(all="ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""A consortium of the centre and four hospitals in real processes, which the whole jobs of these tests are given to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concilia.client import Client
from concilia.commands.jobs import ENDED
from concilia.connection import Connection, Endpoints
from concilia.stack.enrolment import enrol, make_keys, write_connection
from concilia.stack.layout import Layout, Process, Site
from concilia_aggregator.folding import MASKING
from concilia_client_node import drawn
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.jobs import JobSpec, JobView
from concilia_kit.wire.masking import Unmasking
from concilia_kit.wire.models import InitialModelRequest, Weights
from concilia_kit.wire.training import Architecture, Evaluation, LocalTraining

from tests.chaos.processes import Spec, Supervised, answers, listens

HOSPITALS, START_SECONDS = 4, 120.0
LITTLE = LocalTraining(batch_size=8, image_size=32, max_images=16)


def until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(pause)


@dataclass
class World:
    """The consortium, and what its nodes keep."""

    folder: Path
    layout: Layout
    processes: dict[str, Supervised]
    admin: Client
    initial: str

    @property
    def nodes(self) -> list[Supervised]:
        return [self.processes[f"node-{at}"] for at in range(HOSPITALS)]

    def ask(self, name: str, rounds: int, local: LocalTraining = LITTLE, **more: Any) -> JobView:
        """Have a small job made, evaluated after its last round, with what else is said of it."""
        spec = JobSpec(
            name=name,
            architecture=Architecture.MOBILENET_V2,
            initial=self.initial,
            rounds=rounds,
            seed=5,
            evaluate_every=rounds,
            local=local,
            evaluation=Evaluation(max_images=16),
            **more,
        )
        return self.admin.create_job(spec)

    def ended(self, job: JobView, seconds: float = 90) -> JobView:
        found = job

        def look() -> bool:
            nonlocal found
            found = self.admin.job(job.id)
            return found.phase in ENDED

        until(look, seconds, "the job ends")
        return found

    def kept(self, node: int, job: str, what: str) -> Path:
        return self.folder / f"node-{node}" / "masking" / job / "1" / f"{what}.json"

    @contextmanager
    def signed_in(self, who: str) -> Iterator[Connection]:
        """The services as somebody of the layout reaches them."""
        file = self.layout.keystore(who)
        mine = {"keystore": file, "password_file": file.with_suffix(".password")}
        connection = Connection(Endpoints.read(self.layout.connection_file).model_copy(update=mine))
        try:
            yield connection
        finally:
            connection.close()

    def file(self, digest: str) -> TensorFile:
        """A file of the model service's store, as it lies there."""
        return TensorFile.open(self.layout.artifacts / digest[:2] / digest)

    def unmasking(self, digest: str) -> Unmasking:
        return Unmasking.model_validate_json(self.file(digest).header.metadata[MASKING])


@contextmanager
def running(folder: Path, port: int) -> Iterator[World]:
    """A consortium at work, its parties enrolled: its processes keep to `folder` and to twelve ports from `port` on."""
    layout = Layout(folder, port)
    for name in ("keys", "redis", "logs"):
        (folder / name).mkdir(mode=0o700)
    addresses = make_keys(layout, HOSPITALS)
    write_connection(layout)
    drawn.write_drawn(folder / "drawn", images=200, seed=5)
    sites = [Site(f"hospital {at}", f"iid:{at}/{HOSPITALS}") for at in range(HOSPITALS)]
    processes: dict[str, Supervised] = {}

    def start(each: Process) -> None:
        redis = each.name == "redis"
        ready = listens(layout.port_of("redis")) if redis else answers(each.ready_url or "")
        processes[each.name] = Supervised(Spec(each.name, each.command, each.environment, ready), folder / "logs")
        processes[each.name].start()

    try:
        for each in layout.processes(addresses["admin"], folder / "drawn", sites, 1):
            start(each)
        for name, each in processes.items():
            if not name.startswith("node-"):
                each.await_ready(START_SECONDS)
        with Client(Connection(Endpoints.read(layout.connection_file))) as admin:
            enrol(admin, addresses)
            until(lambda: len(admin.nodes()) == HOSPITALS, START_SECONDS, "all nodes register")
            asked = InitialModelRequest(architecture=Architecture.MOBILENET_V2, seed=1, weights=Weights.RANDOM)
            yield World(folder, layout, processes, admin, admin.initial_model(asked).digest)
    finally:
        for each in reversed(processes.values()):
            each.stop()

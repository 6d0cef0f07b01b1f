"""Secure rounds by real processes of the centre and four hospitals: over the broker and over HTTPS, with one killed for
good once it had handed out its shares, and with too few left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from concilia.client import Client
from concilia.commands.verification import run_verification
from concilia.connection import Connection, Endpoints
from concilia.stack.enrolment import enrol, make_keys, write_connection
from concilia.stack.layout import Layout, Process, Site
from concilia_client_node import drawn
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import JobSpec, JobView, Phase
from concilia_kit.wire.masking import SecureAggregation, Unmasking
from concilia_kit.wire.models import InitialModelRequest, Weights
from concilia_kit.wire.training import Architecture, Evaluation, LocalTraining

from tests.chaos.processes import Spec, Supervised, answers, listens

HOSPITALS, START_SECONDS = 4, 120.0
ENDED = frozenset({Phase.FINISHED, Phase.FAILED, Phase.STOPPED})


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

    def ask(self, rounds: int, deadline_seconds: int, stage_seconds: int = 20) -> JobView:
        spec = JobSpec(
            name="secure",
            architecture=Architecture.MOBILENET_V2,
            initial=self.initial,
            rounds=rounds,
            quorum=3,
            deadline_seconds=deadline_seconds,
            seed=5,
            evaluate_every=rounds,
            local=LocalTraining(batch_size=8, image_size=32, max_images=16),
            evaluation=Evaluation(max_images=16),
            secure=SecureAggregation(stage_seconds=stage_seconds),
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

    def unmasking(self, digest: str) -> Unmasking:
        path = self.layout.artifacts / digest[:2] / digest
        return Unmasking.model_validate_json(TensorFile.open(path).header.metadata["concilia.masking"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], int]) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("secure")
    layout = Layout(folder, free_ports(12))
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


def see_masked(world: World, job: JobView, survivors: int) -> None:
    """Of each closed round the updates are words that are spread evenly, and the model's file says what unmasks their
    sum and nothing else."""
    ledger = {each.round: each for each in world.admin.ledger_job(job.id).rounds}
    for number, each in ledger.items():
        assert each.status is RoundStatus.CLOSED
        accepted = each.accepted()
        assert len(accepted) == survivors
        assert each.global_digest is not None
        unmasking = world.unmasking(each.global_digest)
        assert set(unmasking.survivors) == {item.update.hospital for item in accepted} == set(unmasking.seeds)
        assert set(unmasking.keys) == set(unmasking.sharers) - set(unmasking.survivors)
        for item in accepted:
            assert item.metrics is not None
            assert item.metrics.masked is not None
            assert item.metrics.masked.roster == unmasking.roster.digest()
            file = TensorFile.open(world.layout.artifacts / item.update.digest[:2] / item.update.digest)
            words = file.flat("classifier.1.weight")
            assert words.dtype == np.int32, number
            # Of 8,960 words that are spread evenly half are negative, give or take 3.2 % at six standard deviations.
            assert abs(float((words < 0).mean()) - 0.5) < 0.032


def test_a_job_over_the_queue(world: World) -> None:
    job = world.ended(world.ask(rounds=2, deadline_seconds=120))
    assert job.phase is Phase.FINISHED, job.detail
    see_masked(world, job, HOSPITALS)
    verdict = run_verification(world.admin, job.id, None)
    assert verdict.ok, verdict
    # The sums are settled and evaluated, so that no node keeps what masked them.
    until(lambda: not any(world.folder.glob(f"node-*/masking/{job.id}/*")), 10, "secrets are forgotten")
    items = (world.folder / "node-0" / "updates" / job.id / "2" / "leaving.json").read_text()
    assert "revealed shares" in items


def vanish(world: World, job: JobView, nodes: list[int], what: str) -> None:
    """Kill nodes for good, each as soon as it keeps something of the first round."""
    for node in nodes:
        until(world.kept(node, job.id, what).exists, 60, f"node-{node} has its {what}", pause=0.005)
        world.nodes[node].vanish()


def round_is(world: World, job: JobView, status: RoundStatus) -> Callable[[], bool]:
    """Whether the ledger has the job's first round so."""

    def look() -> bool:
        try:
            rounds = world.admin.ledger_job(job.id).rounds
        except Problem:
            return False
        return bool(rounds) and rounds[0].status is status

    return look


def test_a_round_goes_on_without_one_that_was_killed_after_its_shares(world: World) -> None:
    job = world.ask(rounds=1, deadline_seconds=10)
    vanish(world, job, [3], "held")
    until(round_is(world, job, RoundStatus.CLOSED), 60, "the round is closed")
    world.nodes[3].return_()
    job = world.ended(job)
    assert job.phase is Phase.FINISHED, job.detail
    see_masked(world, job, HOSPITALS - 1)
    assert job.model is not None
    assert len(world.unmasking(job.model).keys) == 1
    assert run_verification(world.admin, job.id, None).ok
    world.nodes[3].await_ready(START_SECONDS)


def test_nothing_comes_of_a_round_that_too_few_are_left_of(world: World) -> None:
    job = world.ask(rounds=1, deadline_seconds=10)
    vanish(world, job, [1, 2, 3], "held")
    until(round_is(world, job, RoundStatus.ABORTED), 60, "the round is aborted")
    world.admin.stop_job(job.id)
    ended = world.ended(job)
    assert ended.phase in {Phase.STOPPED, Phase.FAILED}
    assert ended.model in {None, world.initial}
    first = world.admin.ledger_job(job.id).rounds[0]
    assert first.global_digest is None
    assert not world.kept(0, job.id, "revealed").exists()
    assert not world.kept(0, job.id, "agreed").exists()


def over_https(world: World) -> None:
    """Nodes, those that vanished among them, ask for their tasks at the aggregator from now on."""
    for each in world.nodes:
        spec = each.spec
        each.spec = replace(spec, environment={**spec.environment, "CONCILIA_NODE_BROKER_URL": ""})
        if each is world.nodes[0]:
            each.kill()
        each.return_()
    for each in world.nodes:
        each.await_ready(START_SECONDS)


def test_a_job_over_https(world: World) -> None:
    """With the nodes that were killed before, who come back to rounds that are over."""
    over_https(world)
    job = world.ended(world.ask(rounds=1, deadline_seconds=120))
    assert job.phase is Phase.FINISHED, job.detail
    see_masked(world, job, HOSPITALS)
    assert run_verification(world.admin, job.id, None).ok

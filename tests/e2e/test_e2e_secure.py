"""Secure rounds by real processes of the centre and four hospitals: over the broker and over HTTPS, with one killed for
good once it had handed out its shares, and with too few left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from concilia.commands.verification import run_verification
from concilia_kit.masking.graph import graph
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import JobView, Phase, Schedule
from concilia_kit.wire.masking import SecureAggregation
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import Balance

from tests.e2e.consortium import HOSPITALS, LITTLE, START_SECONDS, World, until


def ask(world: World, rounds: int, deadline_seconds: int, **more: Any) -> JobView:
    secure = SecureAggregation(stage_seconds=20)
    return world.ask("secure", rounds, quorum=3, deadline_seconds=deadline_seconds, secure=secure, **more)


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
            words = world.file(item.update.digest).flat("classifier.1.weight")
            assert words.dtype == np.int32, number
            # Of 8,960 words that are spread evenly half are negative, give or take 3.2 % at six standard deviations.
            assert abs(float((words < 0).mean()) - 0.5) < 0.032


def test_a_job_over_the_queue(world: World) -> None:
    job = world.ended(ask(world, rounds=2, deadline_seconds=120))
    assert job.phase is Phase.FINISHED, job.detail
    see_masked(world, job, HOSPITALS)
    verdict = run_verification(world.admin, job.id, None)
    assert verdict.ok, verdict
    # The sums are settled and evaluated, so that no node keeps what masked them.
    until(lambda: not any(world.folder.glob(f"node-*/masking/{job.id}/*")), 10, "secrets are forgotten")
    # A sum is unmasked as soon as enough agreed to it and revealed; who comes later has nothing more to send.
    final = {each.round: each.global_digest for each in world.admin.ledger_job(job.id).rounds}[2]
    assert final is not None
    needed = sum(graph(world.unmasking(final).roster).needed)
    lists = [each.read_text() for each in world.folder.glob(f"node-*/updates/{job.id}/2/leaving.json")]
    assert len(lists) == HOSPITALS
    for what in ("consent to a sum", "revealed shares"):
        assert sum(f'"{what}"' in each for each in lists) >= needed, what


def test_with_differential_privacy_the_aggregator_sees_a_noisy_sum_alone(world: World) -> None:
    local = LITTLE.model_copy(update={"balance": Balance.NONE})
    privacy, schedule = Privacy(noise=1.0, clip=0.5), Schedule(head_rounds=1)
    job = world.ended(ask(world, 1, 120, local=local, privacy=privacy, schedule=schedule))
    assert job.phase is Phase.FINISHED, job.detail
    see_masked(world, job, HOSPITALS)
    spent = job.rounds[1].privacy
    assert len(spent) == HOSPITALS
    assert all(each.epsilon > 0 and not each.central for each in spent.values())
    assert run_verification(world.admin, job.id, None).ok
    told = world.admin.card(job.id)
    assert "Hospitals masked their updates" in told
    assert "Hospitals trained with differential privacy" in told


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
    job = ask(world, rounds=1, deadline_seconds=10)
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
    job = ask(world, rounds=1, deadline_seconds=10)
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
    job = world.ended(ask(world, rounds=1, deadline_seconds=120))
    assert job.phase is Phase.FINISHED, job.detail
    see_masked(world, job, HOSPITALS)
    assert run_verification(world.admin, job.id, None).ok

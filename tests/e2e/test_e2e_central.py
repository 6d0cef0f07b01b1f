"""Noise at the aggregator by real processes of the centre and four hospitals: what it cost is told, no hospital reads a
key, and whoever may read updates makes the models again."""

from __future__ import annotations

from concilia.commands.verification import run_verification
from concilia_client_node import accounting, sampling
from concilia_kit import http
from concilia_kit.problems import Problem
from concilia_kit.wire.jobs import Phase
from concilia_kit.wire.metadata import NOISE
from concilia_kit.wire.strategy import Strategy, StrategyName

from tests.e2e.consortium import HOSPITALS, World

STRATEGY = Strategy(name=StrategyName.DP_FEDAVG, radius=0.5, noise=0.05, delta=1e-5)


def status(world: World, who: str, digest: str) -> int:
    """What the model service answers somebody who asks for a file."""
    with world.signed_in(who) as connection:
        try:
            return http.call(connection.model, "GET", f"/v1/artifacts/{digest}").status_code
        except Problem as problem:
            return problem.problem_status


def test_a_job_with_noise_at_the_aggregator(world: World) -> None:
    asked = world.ask("central", 2, strategy=STRATEGY, quorum=HOSPITALS, deadline_seconds=120)
    job = world.ended(asked, 180)
    assert job.phase is Phase.FINISHED, job.detail
    assert STRATEGY.central is not None
    for number, each in enumerate(job.rounds[1:], start=1):
        expected = accounting.epsilon([sampling.central(STRATEGY.central)] * number, 1e-5)
        assert len(each.privacy) == HOSPITALS
        assert {(spent.epsilon, spent.central) for spent in each.privacy.values()} == {(expected, True)}
        key = world.file(each.model or "").header.metadata[NOISE]
        answers = {who: status(world, who, key) for who in ("node-0", "node-1", "auditor", "admin", "clinician")}
        assert answers == {"node-0": 404, "node-1": 404, "auditor": 200, "admin": 200, "clinician": 403}
        assert status(world, "node-0", each.model or "") == 200
    verdict = run_verification(world.admin, job.id, None)
    assert verdict.ok, verdict

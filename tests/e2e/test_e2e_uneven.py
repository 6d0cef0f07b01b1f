"""A job for hospitals that have other classes than each other, by real processes: they count by their parts of each
class, and answers go by where a picture is from; at evaluation, and when the published model is used."""

from __future__ import annotations

import pytest
from concilia.client import Client
from concilia.commands.verification import run_verification
from concilia_aggregator.facts import RoundFacts
from concilia_aggregator.folding import FACTS
from concilia_kit.problems import Problem
from concilia_kit.wire.jobs import Phase
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Balance

from tests.e2e.consortium import HOSPITALS, LITTLE, World


def test_a_job_by_parts_of_classes_and_by_own_shares(world: World) -> None:
    asked = world.ask(
        "uneven",
        1,
        LITTLE.model_copy(update={"balance": Balance.LOGIT}),
        strategy=Strategy(name=StrategyName.CLASS_BALANCED),
        own_shares=True,
        quorum=HOSPITALS,
        deadline_seconds=120,
    )
    job = world.ended(asked, 180)
    assert job.phase is Phase.FINISHED, job.detail
    [recorded] = [each for each in world.admin.ledger_job(job.id).rounds if each.round == 1]
    told = [item.metrics.class_counts for item in recorded.accepted() if item.metrics is not None]
    assert len(told) == HOSPITALS
    assert all(each is not None and sum(each) > LITTLE.batch_size for each in told)
    model = job.rounds[1].model or ""
    facts = RoundFacts.model_validate_json(world.file(model).header.metadata[FACTS])
    assert facts.class_counts is not None
    assert sorted(facts.class_counts) == sorted(told)  # in the order of contributions
    verdict = run_verification(world.admin, job.id, None)
    assert verdict.ok, verdict

    first = job.rounds[0].confusion
    assert first is not None
    everybody = tuple(map(sum, first))
    use = world.admin.model(model).use
    assert use is not None
    assert use.class_counts == everybody
    with world.signed_in("clinician") as connection:
        to = Client(connection)
        plain = shares(to, world, model, None)
        assert shares(to, world, model, (0, 0, 0, 0, 0, 1000, 0))["nv"] > plain["nv"]
        assert shares(to, world, model, everybody) == pytest.approx(plain, abs=1e-6)
        with pytest.raises(Problem, match="classes are counted"):
            shares(to, world, model, (1, 2))


def shares(to: Client, world: World, model: str, counts: tuple[int, ...] | None) -> dict[str, float]:
    """What a picture's probabilities are by a model, where so many pictures of each class are where it is from."""
    told = None if counts is None else ",".join(map(str, counts))
    picture = next(world.folder.glob("**/*.jpg"))
    return {each.code: each.probability for each in to.predict(picture, model, class_counts=told).probabilities}

"""A model's card: every figure from the counts, every warning where its reason is, and as the API gives it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from concilia_aggregator.card import figures, intervals
from concilia_aggregator.card.facts import Facts, gather
from concilia_aggregator.card.limits import limits
from concilia_aggregator.card.page import card
from concilia_aggregator.card.privacy import privacy
from concilia_aggregator.errors import JobNotFound, NothingPublished
from concilia_aggregator.main import MIGRATIONS
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import Store, state_of
from concilia_aggregator.tables import RoundRow
from concilia_aggregator.verification.records import Verifications
from concilia_kit import database
from concilia_kit.classification import Classification, Disease
from concilia_kit.signing import Domain
from concilia_kit.wire.calibration import Calibrated, CriticalUse, Reliability, UnusualUse, Use
from concilia_kit.wire.jobs import JobSpec, JobView, Phase
from concilia_kit.wire.masking import SecureAggregation
from concilia_kit.wire.models import NOTICE
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.privacy import Privacy, Spent
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import SCORE_BINS, Evaluation, EvaluationReport
from concilia_kit.wire.verification import Finding, Verdict, Verification, VerificationState

from .conftest import address

GOLDEN = Path(__file__).parent / "golden"
JOB, INITIAL, FIRST, MODEL = "a" * 64, "b" * 64, "c" * 64, "d" * 64
LEDGER = Domain(chain_id=5, contract=address(99))
EAST, WEST, LATE = address(1), address(2), address(3)
HEALTH = Classification(
    name="health", classes=tuple(Disease(code=code, name=code.title()) for code in ("ill", "well")), critical="ill"
)


def report(confusion: tuple[tuple[int, int], tuple[int, int]], model: str = MODEL, **changes: Any) -> EvaluationReport:
    """Counts of two classes; each picture's probability was in the middle of the bins."""
    row = [sum(each) for each in confusion]
    images = sum(row)

    def bins(count: int) -> tuple[int, ...]:
        return tuple(count if place == SCORE_BINS // 2 else 0 for place in range(SCORE_BINS))

    return EvaluationReport(
        **{
            "job": JOB,
            "round": 2,
            "model": model,
            "confusion": confusion,
            "positives": tuple(bins(each) for each in row),
            "negatives": tuple(bins(images - each) for each in row),
            "loss_sum": 0.5 * images,
            "images": images,
            "lesions": images,
            "overlapping_lesions": 0,
            "skipped_images": 0,
            "seconds": 1.0,
            **changes,
        }
    )


def node(site: str, source: str = "clinic", training: tuple[int, int] = (300, 500)) -> NodeRegistration:
    return NodeRegistration(
        site=site,
        source=source,
        training_images=training,
        held_out_images=(50, 50),
        training_lesions=700,
        held_out_lesions=100,
        overlapping_lesions=0,
        skipped_images=0,
        classification=HEALTH,
    )


REPORTS = {EAST: report(((40, 10), (5, 45))), WEST: report(((20, 30), (10, 90)))}


def finished(folder: Path, **spec: Any) -> tuple[Store, Verifications]:
    """A job of two rounds that has published its model, by two hospitals of which one gave to the first round alone."""
    engine = database.engine(f"sqlite:///{folder}/aggregator.db")
    database.migrate(engine, MIGRATIONS)
    store = Store(engine)
    asked = JobSpec(**{"name": "lesions", "initial": INITIAL, "classification": HEALTH, **spec})
    store.add_job(JOB, asked, JobState(Phase.FINISHED, MODEL, round=2, closed=2), address(9))
    for number, (base, model, who) in enumerate(((INITIAL, FIRST, [EAST, WEST]), (FIRST, MODEL, [EAST])), start=1):
        rejected = [{"hospital": WEST, "digest": "e" * 64, "reason": "norm"}] if number == 2 else []
        row = RoundRow(JOB, number, base, model, 9, 1.0, 2.0, {"accepted": who, "rejected": rejected})
        store.save(store.job(JOB), state_of(store.job(JOB)), round_=row)
    for hospital, name, source in ((EAST, "east", "clinic"), (WEST, "west", "practice"), (LATE, "late", "clinic")):
        store.register(hospital, node(name, source))
    for hospital, told in REPORTS.items():
        store.report(hospital, told)
        store.report(hospital, report(((0, 50), (0, 50)), INITIAL, round=0))
    return store, Verifications(engine, store)


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return gather(*finished(tmp_path), lambda: LEDGER, JOB)


def changed(facts: Facts, **spec: Any) -> Facts:
    return replace(facts, job=facts.job.model_copy(update={"spec": facts.job.spec.model_copy(update=spec)}))


def row(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(beginning))


def test_what_a_job_comes_to_is_in_its_card(facts: Facts) -> None:
    text = card(facts)
    assert text.startswith(f"# lesions\n\n**{NOTICE}**\n")
    for digest in (MODEL, JOB, INITIAL, FIRST, LEDGER.contract, EAST, WEST):
        assert f"`{digest}`" in text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        f"## {each}"
        for each in (
            *("Intended use", "Factors", "Training data", "Evaluation data", "Training", "Metrics", "Limits"),
            *("Lineage", "Verification", "How this was made"),
        )
    ]
    assert card(facts) == text
    assert LATE not in text  # registered, and took no part
    assert "late" not in row(text, "| site |")


def test_figures_are_those_of_the_counts(facts: Facts) -> None:
    text = card(facts)
    pooled = [[60, 40], [15, 135]]
    ill, well = intervals.wilson(60, 100), intervals.wilson(135, 150)
    balanced = intervals.mean([ill, well])
    assert row(text, "| Balanced accuracy |").startswith(
        f"| Balanced accuracy | 0.750 ({balanced.low:.3f} to {balanced.high:.3f}) | 0.500 ("
    )
    assert "| Ill: recall | 0.600 (0.502 to 0.691) | 0.000 (" in text
    assert row(text, "| Accuracy |").startswith("| Accuracy | 0.780 (")
    assert row(text, "| Loss |") == "| Loss | 0.500 | 0.500 |"
    precision = intervals.wilson(60, 75)
    assert row(text, "| Ill | 100 |").startswith(
        f"| Ill | 100 | 0.600 (0.502 to 0.691) | 0.800 ({precision.low:.3f} to {precision.high:.3f}) |"
    )
    assert row(text, "| east | 100 | 0.850").endswith(" 0.800 (0.670 to 0.888) |")
    assert row(text, "| west | 150 | 0.650").endswith(" 0.400 (0.276 to 0.538) |")
    assert row(text, "| **all** |") == "| **all** | 100 | 150 | 250 | 250 |"
    assert row(text, f"| east | `{EAST}`") == f"| east | `{EAST}` | clinic | 300 | 500 | 700 | 2 of 2 |"
    assert row(text, f"| west | `{WEST}`").endswith("| 1 of 2 |")
    assert "| `ill` | 60 | 40 |\n| `well` | 15 | 135 |" in text
    assert row(text, "| 1 |") == f"| 1 | `{FIRST}` | east, west | – |"
    assert row(text, "| 2 |") == f"| 2 | `{MODEL}` | east | west: norm |"
    assert figures.confusion(REPORTS.values(), 2) == pooled


def test_what_a_classification_is_judged_by_comes_first(facts: Facts) -> None:
    told = HEALTH.model_copy(update={"metrics": ("macro_auc", "sensitivity:well")})
    text = card(changed(facts, classification=told))
    table = text.split("|  | published model | initial weights |")[1].split("\n\n")[0].splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table] == [
        *("Mean AUC", "Well: recall", "Balanced accuracy", "Accuracy", "Ill: recall", "Loss")
    ]
    assert table[0] == "| Mean AUC | 0.500 | 0.500 |"  # every picture had the same probability
    assert table[1].startswith("| Well: recall | 0.900 (")
    assert "| site | pictures | mean AUC | recall of `well` | balanced accuracy | accuracy | recall of `ill` |" in text
    assert "Worst site: east, mean AUC 0.500 on 100 pictures, 0.000 below the best (west)." in text


def test_an_error_of_calibration_is_what_no_bin_hides() -> None:
    told = report(((6, 4), (3, 7)))  # half of 20 pictures are ill, all had a probability from 0.5 to 0.53
    assert figures.calibration_errors([told], 2) == [0.0, 0.0]
    sure = tuple(8 if place == SCORE_BINS - 1 else 0 for place in range(SCORE_BINS))
    wrong = tuple(12 if place == SCORE_BINS - 1 else 0 for place in range(SCORE_BINS))
    worst = told.model_copy(update={"positives": (sure, sure), "negatives": (wrong, wrong)})
    assert figures.calibration_errors([worst], 2) == [pytest.approx(31 / 32 - 8 / 20)] * 2
    nobody = told.model_copy(update={"positives": ((0,) * SCORE_BINS,) * 2, "negatives": ((0,) * SCORE_BINS,) * 2})
    assert figures.calibration_errors([nobody], 2) == [None, None]


def test_a_class_that_nobody_was_told_of_has_no_precision() -> None:
    assert figures.precisions([[0, 3], [0, 5]]) == [None, intervals.wilson(5, 8)]


def test_what_privacy_cost_whom_is_the_last_that_each_said(facts: Facts) -> None:
    def spent(epsilon: float) -> Spent:
        return Spent(epsilon=epsilon, delta=1e-5, noise=1.25, clip=0.5, rate=0.0625, steps=16)

    costs = ({}, {EAST: spent(1.0), WEST: spent(1.5)}, {EAST: spent(2.25)})
    rounds = [each.model_copy(update={"privacy": cost}) for each, cost in zip(facts.job.rounds, costs, strict=True)]
    asked = changed(facts, privacy=Privacy(noise=1.25, clip=0.5))
    text = card(replace(asked, job=asked.job.model_copy(update={"rounds": tuple(rounds)})))
    assert f"| east | `{EAST}` | 2.250 | 1e-05 | 1.25 | 0.0625 |" in text
    assert f"| west | `{WEST}` | 1.500 | 1e-05 | 1.25 | 0.0625 |" in text
    assert "The unit is the lesion, with all its pictures" in text
    assert f"| east | `{EAST}` | – | – | – | – |" in card(asked)
    assert "ε" not in card(facts)


def test_a_card_says_what_was_seen_of_masked_updates(facts: Facts) -> None:
    assert "masked" not in privacy(facts)
    assert privacy(replace(changed(facts, secure=SecureAggregation()), accepted={})) == ""
    fewest = min(map(len, facts.accepted.values()))
    masked = privacy(changed(facts, secure=SecureAggregation()))
    assert masked.startswith("Hospitals masked their updates (secure aggregation).")
    assert f"had sums of {fewest} hospitals or more." in masked
    grouped = privacy(changed(facts, secure=SecureAggregation(group=3, threshold=0.75)))
    assert "of groups that began with 3 hospitals or more and kept at least 75% of them." in grouped
    both = changed(facts, secure=SecureAggregation(), privacy=Privacy(noise=1.25, clip=0.5))
    assert privacy(both).split("\n\n")[:2] == [masked, privacy(changed(both, secure=None)).split("\n\n")[0]]
    assert f"## Privacy\n\n{masked}\n\n## Metrics" in card(changed(facts, secure=SecureAggregation()))


def test_a_card_says_whose_trust_noise_at_the_aggregator_takes(facts: Facts) -> None:
    spent = Spent(epsilon=1.25, delta=1e-5, noise=2, clip=1.0, rate=1, steps=1, central=True)
    strategy = Strategy(name=StrategyName.DP_FEDAVG, radius=0.5, noise=4)
    asked = changed(facts, strategy=strategy)
    rounds = [each.model_copy(update={"privacy": {EAST: spent}}) for each in facts.job.rounds]
    text = card(replace(asked, job=asked.job.model_copy(update={"rounds": tuple(rounds)})))
    assert f"| east | `{EAST}` | 1.250 | 1e-05 | 2 | 1 |" in text
    assert "takes trust in the aggregator" in text
    assert "how far one update can move the sum, 1." in text
    assert "DP-SGD" not in text


# -------------------------------------------------------------------------------------------------------- limits


def warned(facts: Facts, words: str) -> bool:
    return any(words in each for each in limits(facts))


def test_a_card_warns_of_what_its_counts_show_and_of_nothing_else(facts: Facts) -> None:
    assert "Worst site: west, balanced accuracy 0.650" in "\n".join(limits(facts))
    for words in ("drawn by a program", "one source", "too few", "training pictures over all", "own ", "both**"):
        assert not warned(facts, words), words
    for words in ("at most", "could not be read", "held-out pictures, which makes", "independent", "did not measure"):
        assert not warned(facts, words), words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": {EAST: node("east"), WEST: node("west")}}, "All pictures are of one source (clinic)"),
        ({"nodes": {EAST: node("east", "drawn lesions")}}, "drawn by a program"),
        (
            {"nodes": {EAST: node("east", training=(60, 500)), WEST: node("w", training=(10, 1))}},
            "70 training pictures",
        ),
        ({"reports": {EAST: report(((10, 5), (5, 45)))}}, "15 held-out pictures, too few"),
        ({"reports": {EAST: REPORTS[EAST]}}, "did not measure the published model: west"),
        ({"reports": {EAST: report(((40, 10), (5, 45)), overlapping_lesions=3)}}, "**3 lesions are in training and"),
        ({"reports": {EAST: report(((40, 10), (5, 45)), skipped_images=2)}}, "2 held-out pictures could not be read"),
        ({"reports": {EAST: report(((40, 10), (5, 45)), lesions=61)}}, "100 pictures are of 61 lesions"),
    ],
)
def test_a_card_warns(facts: Facts, changes: dict[str, Any], words: str) -> None:
    assert warned(replace(facts, **changes), words)
    assert words in card(replace(facts, **changes))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"strategy": Strategy(name=StrategyName.FEDBN)}, "with its own normalisation layers"),
        ({"strategy": Strategy(name=StrategyName.FEDREP)}, "with its own last layer"),
        ({"target": 0.8}, "Training ended by the score on the same held-out pictures"),
        ({"evaluation": Evaluation(max_images=7)}, "at most 7 held-out pictures a site"),
    ],
)
def test_a_card_warns_of_what_was_asked_for(facts: Facts, spec: dict[str, Any], words: str) -> None:
    assert warned(changed(facts, **spec), words)


def test_counts_of_a_node_that_tells_other_things_apart_now_are_not_taken(facts: Facts) -> None:
    other = node("east").model_copy(update={"classification": HEALTH.model_copy(update={"name": "other"})})
    found = replace(facts, nodes={**facts.nodes, EAST: other})
    assert row(card(found), f"| east | `{EAST}`") == f"| east | `{EAST}` | – | – | – | – | 2 of 2 |"
    unknown = replace(facts, nodes={})
    assert f"| {EAST} | `{EAST}` | – |" in card(unknown)


# ---------------------------------------------------------------------------------- verification and calibration


def verified(ok: bool) -> Verification:
    findings = () if ok else (Finding(round=1, hospital=WEST, digest=None, what="a <signature> is not its hospital's"),)
    verdict = Verdict(
        job=JOB, ok=ok, rounds=2, updates=3, signatures=3, rejected=1, bytes_read=9, published=MODEL, findings=findings
    )
    return Verification(
        id="1" * 32,
        job=JOB,
        state=VerificationState.DONE,
        fraction=1,
        step="done",
        verdict=verdict,
        detail="",
        asked_by=EAST,
        asked_at=datetime(2026, 1, 2, tzinfo=UTC),
        finished_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    )


def test_a_verdict_is_told_as_it_was(facts: Facts) -> None:
    assert "No verification by the aggregator" in card(facts)
    good = card(replace(facts, verification=verified(True)))
    assert "Verified on 2026-01-02 03:04 UTC: 2 rounds folded again, 3 updates (1 rejected), 3 signatures" in good
    bad = card(replace(facts, verification=verified(False)))
    assert "**Not verified** on 2026-01-02 03:04 UTC: 1 findings" in bad
    assert "- round 1: a \\<signature\\> is not its hospital's" in bad
    assert "Verified on" not in bad


def test_the_newest_verdict_counts(tmp_path: Path) -> None:
    store, verifications = finished(tmp_path)
    for ok in (True, False):
        asked, _ = verifications.ask(JOB, EAST)
        verdict = verified(ok).verdict
        assert verdict is not None
        verifications.finish(verifications.take(asked), verdict)
    verifications.ask(JOB, EAST)  # under way, and no verdict yet
    found = gather(store, verifications, lambda: LEDGER, JOB).verification
    assert found is not None
    assert found.verdict is not None
    assert not found.verdict.ok


def test_calibration_is_told_where_it_was_looked_for(facts: Facts) -> None:
    assert "## Reading its answers" not in card(facts)
    use = Use(
        images=250,
        temperature=1.5,
        error_before=0.12,
        error_after=0.03,
        loss_before=0.9,
        loss_after=0.6,
        critical=CriticalUse(
            code="ill", threshold=0.2, wanted=0.95, sensitivity=0.94, specificity=0.5, positives=100, negatives=150
        ),
        unusual=UnusualUse(threshold=3.0, share=0.011),
    )
    none = Reliability(images=(0,) * 15, correct=(0,) * 15, confidence=(0.0,) * 15)
    rounds = [
        each.model_copy(update={"calibrated": Calibrated(use=use, before=none, after=none)})
        if each.round == 2
        else each
        for each in facts.job.rounds
    ]
    text = card(replace(facts, job=facts.job.model_copy(update={"rounds": tuple(rounds)})))
    sensitivity, specificity = intervals.wilson(94, 100), intervals.wilson(75, 150)
    assert "divided by 1.500" in text
    assert "0.120 as the network is, 0.030 with it" in text
    assert f"sensitivity {figures.with_limits(sensitivity)} on 100" in text
    assert f"specificity {figures.with_limits(specificity)} on 150" in text
    assert "1.1% of held-out pictures are told to be unusual" in text


# ---------------------------------------------------------------------------------------------- gathered, and real


def test_a_job_without_a_model_has_no_card(tmp_path: Path) -> None:
    store, verifications = finished(tmp_path)
    running = JobState(Phase.TRAINING, FIRST, round=2)
    store.add_job("f" * 64, JobSpec(name="j", initial=INITIAL), running, EAST)
    with pytest.raises(NothingPublished, match="training"):
        gather(store, verifications, lambda: LEDGER, "f" * 64)
    with pytest.raises(JobNotFound):
        gather(store, verifications, lambda: LEDGER, "0" * 64)


def test_a_model_that_nobody_measured_has_a_card_that_says_so(tmp_path: Path) -> None:
    store, verifications = finished(tmp_path)
    with store._database.begin() as connection:
        connection.execute(sa.text("delete from reports where round = 2"))
    text = card(gather(store, verifications, lambda: LEDGER, JOB))
    assert "Nobody measured the published model." in text
    assert "did not measure the published model: east, west" in text


def test_what_people_wrote_is_no_markup(tmp_path: Path) -> None:
    store, verifications = finished(tmp_path, name="<b>job</b> | [x](http://e)\n# h")
    store.register(EAST, node("| <i>east</i> |", "`clinic`"))
    text = card(gather(store, verifications, lambda: LEDGER, JOB))
    assert text.startswith("# \\<b\\>job\\</b\\> \\| \\[x\\](http:\\//e) \\# h\n")
    assert "<b>" not in text
    assert "<i>" not in text
    assert "| \\| \\<i\\>east\\</i\\> \\| |" in text


def load(path: Path) -> Facts:
    kept = json.loads(path.read_text())
    return Facts(
        job=JobView.model_validate(kept["job"]),
        model=kept["job"]["model"],
        reports={who: EvaluationReport.model_validate(each) for who, each in kept["reports"].items()},
        baseline={who: EvaluationReport.model_validate(each) for who, each in kept["baseline"].items()},
        accepted={int(number): tuple(who) for number, who in kept["accepted"].items()},
        nodes={who: NodeRegistration.model_validate(each) for who, each in kept["nodes"].items()},
        ledger=Domain.model_validate(kept["ledger"]),
        verification=Verification.model_validate(kept["verification"]),
    )


def test_the_card_of_a_real_job() -> None:
    """Four real collections, two rounds from ImageNet's trunk, kept as the aggregator had them."""
    assert card(load(GOLDEN / "real_job.json")) == (GOLDEN / "real_job.md").read_text()

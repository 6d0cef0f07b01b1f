"""Calibration from counts against calibration from the raw logits, by other means; and what is counted at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from concilia_aggregator import calibrating
from concilia_client_node import calibrating as counting
from concilia_client_node.evaluation import count
from concilia_kit.bodies import MAX_BODY
from concilia_kit.classification import LESIONS, MOST, Classification, Disease
from concilia_kit.wire.calibration import (
    CONFIDENCE_BINS,
    ODDS_LIMIT,
    PLAIN,
    TEMPERATURES,
    Calibrated,
    Calibration,
)
from concilia_kit.wire.training import EvaluationReport
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

MEL = LESIONS.critical_index
STEP = TEMPERATURES[1] / TEMPERATURES[0]


@dataclass(frozen=True)
class Seen:
    """What a hospital's network said of its pictures."""

    logits: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    lesions: tuple[str, ...]
    oddities: npt.NDArray[np.float64]

    def counted(self, seed: int = 0, critical: int | None = MEL) -> Calibration:
        right = self.logits.argmax(1) == self.labels
        found = counting.calibration(self.logits, self.labels, right, self.lesions, self.oddities, seed, critical)
        assert found is not None
        return found

    def halves(self, seed: int = 0) -> list[npt.NDArray[np.bool_]]:
        second = np.array(counting.second_half(self.lesions, self.labels, seed))
        return [~second, second]


def seen(images: int, sharpness: float, seed: int, classes: int = 7) -> Seen:
    """Labels drawn from known shares, and logits that are those shares' `sharpness` times too far apart."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.7, (images, classes))
    shares = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > rng.random((images, 1))).argmax(1)
    lesions = tuple(f"L{number // 3 * 3 if number % 3 else number}:{labels[number]}" for number in range(images))
    return Seen(honest * sharpness, labels, lesions, rng.normal(0, 1, images))


def shares_of(logits: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    return torch.from_numpy(logits / temperature).softmax(1).numpy()


def by_lbfgs(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The temperature of the least loss as others fit it (Guo et al. 2017)."""
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    given, truth = torch.from_numpy(logits), torch.from_numpy(labels)
    optimizer = torch.optim.LBFGS([log_t], lr=0.1, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(given / log_t.exp(), truth)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp())


def plain_error(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], temperature: Sequence[float]) -> float:
    """Expected calibration error picture by picture; each has its own temperature."""
    total = 0.0
    shares = np.stack([shares_of(row[None], t)[0] for row, t in zip(logits, temperature, strict=True)])
    confidence, correct = shares.max(1), logits.argmax(1) == labels
    for at in range(CONFIDENCE_BINS):
        inside = (confidence >= at / CONFIDENCE_BINS) & (confidence < (at + 1) / CONFIDENCE_BINS)
        if at == CONFIDENCE_BINS - 1:
            inside |= confidence >= 1
        if inside.any():
            total += abs(correct[inside].mean() - confidence[inside].mean()) * inside.mean()
    return total


@pytest.mark.parametrize("sharpness", [0.6, 1.0, 1.5, 2.2, 3.5])
def test_the_temperature_is_the_one_that_others_fit(sharpness: float) -> None:
    hospitals = [seen(400, sharpness, seed) for seed in range(3)]
    found = pooled([each.counted() for each in hospitals])
    logits = np.concatenate([each.logits for each in hospitals])
    exact = by_lbfgs(logits, np.concatenate([each.labels for each in hospitals]))
    assert found.use.temperature == pytest.approx(exact, rel=0.003)  # a fortieth of the grid's step
    assert found.use.temperature == pytest.approx(sharpness, rel=0.15)


def pooled(counted: Sequence[Calibration], wanted: float = 0.9) -> Calibrated:
    found = calibrating.pooled(counted, LESIONS, wanted)
    assert found is not None
    return found


def test_errors_and_losses_are_those_of_each_half_at_the_other_ones_temperature() -> None:
    hospitals = [seen(300, 2.0, 1), seen(500, 3.0, 2)]
    found = pooled([each.counted() for each in hospitals]).use
    logits = np.concatenate([each.logits for each in hospitals])
    labels = np.concatenate([each.labels for each in hospitals])
    first, second = (np.concatenate([each.halves()[at] for each in hospitals]) for at in (0, 1))
    fitted = [nearest(by_lbfgs(logits[part], labels[part])) for part in (first, second)]
    assert 1 not in fitted
    temperatures = np.where(first, fitted[1], fitted[0])
    assert found.error_before == pytest.approx(plain_error(logits, labels, np.ones(len(labels)).tolist()), abs=1e-5)
    assert found.error_after == pytest.approx(plain_error(logits, labels, temperatures.tolist()), abs=1e-5)
    truth = np.arange(len(labels)), labels
    losses = [-np.log(shares_of(logits / t[:, None], 1)[truth]).mean() for t in (np.ones(len(labels)), temperatures)]
    assert (found.loss_before, found.loss_after) == (pytest.approx(losses[0]), pytest.approx(losses[1]))
    assert (found.error_after or 0) < (found.error_before or 0) / 2


def nearest(temperature: float) -> float:
    return min(TEMPERATURES, key=lambda each: abs(math.log(each / temperature)))


@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95, 1.0])
def test_the_critical_threshold_is_judged_by_pictures_that_did_not_choose_it(wanted: float) -> None:
    hospitals = [seen(400, 1.4, seed) for seed in range(4)]
    found = pooled([each.counted() for each in hospitals], wanted).use.critical
    assert found is not None
    assert found.code == "mel"
    odds = np.concatenate([log_odds(each.logits) for each in hospitals])
    own = np.concatenate([each.labels == MEL for each in hospitals])
    first = np.concatenate([each.halves()[0] for each in hospitals])
    thresholds = {half: direct_threshold(odds[part & own], wanted) for half, part in ((0, first), (1, ~first))}
    above = odds >= np.where(first, thresholds[1], thresholds[0])
    assert found.sensitivity == pytest.approx(above[own].mean())
    assert found.specificity == pytest.approx((~above[~own]).mean())
    assert (found.positives, found.negatives) == (own.sum(), (~own).sum())
    # What is used is of both halves, and a picture's own share is compared with it.
    used = math.log(found.threshold / (1 - found.threshold))
    assert used == pytest.approx(direct_threshold(odds[own], wanted))
    shares = np.concatenate([shares_of(each.logits, 1)[:, MEL] for each in hospitals])
    assert ((shares >= found.threshold) == (odds >= used)).all()
    assert (shares >= found.threshold)[own].mean() >= wanted


def log_odds(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shares = shares_of(logits, 1)[:, MEL]
    return np.log(shares / (1 - shares))


def direct_threshold(odds: npt.NDArray[np.float64], wanted: float) -> float:
    """The highest quarter below which no more than 1 - `wanted` lie."""
    quarters = np.arange(-ODDS_LIMIT, ODDS_LIMIT, 0.25)
    return float(max(edge for edge in quarters if (odds >= edge).mean() >= wanted))


def test_what_is_unusual_is_said_of_few_held_out_pictures() -> None:
    hospitals = [seen(1000, 1.2, seed) for seed in range(3)]
    found = pooled([each.counted() for each in hospitals]).use.unusual
    assert found is not None
    oddities = np.concatenate([each.oddities for each in hospitals])
    assert (oddities >= found.threshold).mean() <= 0.01
    assert 0.003 < found.share < 0.02


def test_counts_of_hospitals_add_up() -> None:
    one, other = seen(200, 2.0, 1).counted(), seen(100, 0.7, 2).counted()
    found = pooled([one, other])
    assert found == pooled([other, one])
    assert found.use.images == sum(found.before.images) == sum(found.after.images) == 300
    for at in range(CONFIDENCE_BINS):
        parts = [half.reliability[PLAIN].images[at] for each in (one, other) for half in each.halves]
        assert found.before.images[at] == sum(parts)


def test_a_lesion_is_in_one_half_and_rare_classes_are_in_both() -> None:
    some = seen(90, 1, 5)
    first, second = some.halves()
    named = np.array(some.lesions)
    assert not set(named[first]) & set(named[second])
    for label in range(7):
        if len(set(named[some.labels == label])) > 1:
            assert {label} <= set(some.labels[first].tolist()) & set(some.labels[second].tolist())
    assert any((some.halves(seed)[0] != first).any() for seed in range(1, 9))  # the seed decides


def test_too_few_pictures_are_not_told_of() -> None:
    some = seen(2 * counting.FEWEST - 1, 1, 0)
    right = some.logits.argmax(1) == some.labels
    assert counting.calibration(some.logits, some.labels, right, some.lesions, some.oddities, 0, MEL) is None


def test_without_a_critical_class_there_is_no_threshold() -> None:
    told = seen(200, 1, 0).counted(critical=None)
    assert {half.positives for half in told.halves} == {None}
    plain = LESIONS.model_copy(update={"critical": None})
    found = calibrating.pooled([told], plain, 0.9)
    assert found is not None
    assert found.use.critical is None
    assert found.use.unusual is not None


def test_nothing_is_said_where_nobody_counted() -> None:
    assert calibrating.pooled([], LESIONS, 0.9) is None


def test_no_image_of_the_critical_class_in_a_half_leaves_its_threshold_out() -> None:
    some = seen(100, 1, 0)
    labels = np.where(some.labels == MEL, 0, some.labels)
    labels[0] = MEL
    lesions = ("alone", *some.lesions[1:])
    told = Seen(some.logits, labels, lesions, some.oddities).counted()
    assert told.critical == 1
    assert pooled([told]).use.critical is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(40, 200), sharpness=st.floats(0.2, 20), constant=st.booleans())
def test_whatever_a_network_says_its_counts_are_whole(seed: int, images: int, sharpness: float, constant: bool) -> None:
    some = seen(images, 0.0 if constant else sharpness, seed)
    told = some.counted(seed)
    assert told.images == images
    assert told == Calibration.model_validate_json(told.model_dump_json())
    found = pooled([told]).use
    assert TEMPERATURES[0] <= found.temperature <= TEMPERATURES[-1]
    for value in (found.error_before, found.error_after):
        assert value is not None
        assert 0 <= value <= 1


def report(some: Seen, classes: int) -> EvaluationReport:
    confusion, positives, negatives = count(shares_of(some.logits, 1), some.labels)
    return EvaluationReport(
        job="1" * 64,
        round=1,
        model="2" * 64,
        confusion=confusion,
        positives=positives,
        negatives=negatives,
        loss_sum=1.0,
        images=len(some.labels),
        lesions=len(set(some.lesions)),
        overlapping_lesions=0,
        skipped_images=0,
        seconds=1.0,
        calibration=some.counted(),
    )


@pytest.mark.parametrize(
    ("images", "classes", "most"), [(2000, 7, 18_000), (200_000, 7, 24_000), (20_000, 100, 54_000)]
)
def test_a_report_with_calibration_is_well_below_what_services_take(images: int, classes: int, most: int) -> None:
    length = len(report(seen(images, 2.0, 1, classes), classes).model_dump_json())
    assert length < most < MAX_BODY


def test_a_report_that_would_be_too_long_goes_without_calibration() -> None:
    long = report(seen(200_000, 2.0, 1, 100), 100)
    assert len(long.model_dump_json()) > MAX_BODY
    sent = counting.fitting(long)
    assert len(sent.model_dump_json()) < MAX_BODY
    assert sent == long.model_copy(update={"calibration": None})
    short = report(seen(60, 2.0, 1, 100), 100)
    assert counting.fitting(short) is short


def test_a_report_must_agree_with_its_calibration() -> None:
    fine = report(seen(60, 1.0, 1), 7)
    other = seen(60, 1.0, 2).counted()
    document = json.loads(fine.model_dump_json())
    assert EvaluationReport.model_validate(document) == fine
    with pytest.raises(ValidationError, match="agree with the confusion matrix"):
        EvaluationReport.model_validate({**document, "calibration": json.loads(other.model_dump_json())})
    without = fine.model_copy(update={"calibration": None})
    assert "calibration" not in without.model_dump(mode="json")


@pytest.mark.parametrize(
    ("where", "what", "match"),
    [
        (("images",), 3, "must sum to images"),
        (("losses", 0), -1.0, "greater than or equal"),
        (("losses", 0), "nan", "number"),
        (("reliability", 3, "correct", 14), 10_000, "no bin"),
        (("reliability", 3, "confidence", 14), 10_000.0, "no bin"),
        (("positives", 0), 1, "sum to images"),
        (("positives",), None, "go together"),
        (("oddity", 5), 1, "sum to images"),
        (("oddity",), [0], "at least"),
    ],
)
def test_counts_that_cannot_be_are_refused(where: tuple[str | int, ...], what: object, match: str) -> None:
    document = json.loads(seen(60, 1.0, 1).counted().model_dump_json())
    place = document["halves"][0]
    for key in where[:-1]:
        place = place[key]
    assert place[where[-1]] != what
    place[where[-1]] = what
    with pytest.raises(ValidationError, match=match):
        Calibration.model_validate(document)


def test_how_halves_are_made_is_what_it_was() -> None:
    """Other halves would have every round of a running job judged by other lesions."""
    some = seen(60, 1.0, 1)
    bits = "".join("01"[int(each)] for each in some.halves(3)[1])
    assert hashlib.sha256(bits.encode()).hexdigest()[:16] == "9cd5234487dcd4a7"


def many(classes: int) -> Classification:
    return Classification(name="many", classes=tuple(Disease(code=f"c{n}", name=f"c {n}") for n in range(classes)))


def test_many_classes_calibrate() -> None:
    told = seen(600, 2.0, 1, MOST).counted(critical=None)
    found = calibrating.pooled([told], many(MOST), 0.9)
    assert found is not None
    assert found.use.temperature > 1.2

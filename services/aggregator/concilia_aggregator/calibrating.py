"""How a model's outputs are to be read, from all hospitals' counts on held-out lesions. Pure.

Whatever is said of a temperature or a threshold is cross-fitted: chosen on one half of the lesions and judged on the
other, and the other way round, with both halves' pictures together in the end. What is used then comes from both.

Sources: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): temperature, expected calibration error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from concilia_kit.classification import Classification
from concilia_kit.wire.calibration import (
    AS_IT_IS,
    ODDITY_BINS,
    ODDS_BINS,
    PLAIN,
    TEMPERATURES,
    Calibrated,
    Calibration,
    CriticalUse,
    Half,
    Reliability,
    UnusualUse,
    Use,
    oddity_edge,
    odds_edge,
)
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.training import EvaluationReport

from concilia_aggregator import scores

USUAL_SHARE = 0.99
"""Of held-out pictures, that are not to be told as unusual."""

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def use(reports: Iterable[EvaluationReport], spec: JobSpec) -> Use | None:
    """How the outputs of a model are to be read that hospitals reported on; None where they are read as they are."""
    told = list(reports)
    found = calibrated(told, spec)
    read = found.use if found is not None else Use(flips=spec.evaluation.flips)
    if spec.own_shares:
        read = read.model_copy(update={"class_counts": scores.class_counts(told)})
    return None if read == AS_IT_IS else read


def calibrated(reports: Iterable[EvaluationReport], spec: JobSpec) -> Calibrated | None:
    """What hospitals' counts come to; None where they counted nothing, or nothing on one of the halves."""
    counted = [report.calibration for report in reports if report.calibration is not None]
    return pooled(counted, spec.classification, spec.sensitivity, flips=spec.evaluation.flips) if counted else None


def pooled(
    reports: Sequence[Calibration], classification: Classification, wanted: float, *, flips: bool = False
) -> Calibrated | None:
    """The same of counts alone; `wanted` is the sensitivity for the critical class."""
    halves = [_Pooled([report.halves[at] for report in reports]) for at in (0, 1)]
    whole = _Pooled([half for report in reports for half in report.halves])
    if not all(half.images for half in halves):
        return None
    coldest = [int(half.losses.argmin()) for half in halves]
    crossed = list(zip(halves, reversed(coldest), strict=True))
    before = whole.reliability(PLAIN)
    after = _added(half.reliability(at) for half, at in crossed)
    use = Use(
        flips=flips,
        images=whole.images,
        temperature=temperature(whole.losses),
        error_before=error(before),
        error_after=error(after),
        loss_before=float(whole.losses[PLAIN]) / whole.images,
        loss_after=float(sum(half.losses[at] for half, at in crossed)) / whole.images,
        critical=_critical(halves, whole, classification, wanted),
        unusual=_unusual(halves, whole),
    )
    return Calibrated(use=use, before=before, after=after)


def temperature(losses: Floats) -> float:
    """The temperature of the least loss, from losses at each of `TEMPERATURES`: the vertex of the parabola in log T
    through the least one and its neighbours; at an end of the grid, that end."""
    least = int(losses.argmin())
    if least in (0, len(TEMPERATURES) - 1):
        return TEMPERATURES[least]
    left, middle, right = (float(losses[least + step]) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = 0.0 if bend <= 0 else (left - right) / (2 * bend)
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    return TEMPERATURES[least] * math.exp(shift * step)


def error(reliability: Reliability) -> float:
    """Expected calibration error: how far, on average over pictures, a bin's confidence is from its accuracy."""
    correct, confidence = np.array(reliability.correct), np.array(reliability.confidence)
    return float(min(1.0, np.abs(correct - confidence).sum() / sum(reliability.images)))


class _Pooled:
    """Several hospitals' halves as one."""

    def __init__(self, halves: Sequence[Half]) -> None:
        self._halves = halves
        self.images = sum(half.images for half in halves)
        # Exact sums, rounded once: the same whatever the order.
        self.losses: Floats = np.array(
            [math.fsum(each) for each in zip(*(half.losses for half in halves), strict=True)]
        )
        self.oddity = _sum([half.oddity for half in halves if half.oddity is not None], ODDITY_BINS)
        self.positives = _sum([half.positives for half in halves if half.positives is not None], ODDS_BINS)
        self.negatives = _sum([half.negatives for half in halves if half.negatives is not None], ODDS_BINS)

    def reliability(self, at: int) -> Reliability:
        """At one of `TEMPERATURES`."""
        return _added(half.reliability[at] for half in self._halves)


def _critical(
    halves: Sequence[_Pooled], whole: _Pooled, classification: Classification, wanted: float
) -> CriticalUse | None:
    positives, negatives = int(whole.positives.sum()), int(whole.negatives.sum())
    # Nothing can be said of a threshold that a half without the class would give.
    if classification.critical is None or not all(half.positives.sum() for half in halves):
        return None
    crossed = [(half, _finding(other.positives, wanted)) for half, other in zip(halves, halves[::-1], strict=True)]
    found = sum(int(half.positives[at:].sum()) for half, at in crossed)
    spared = sum(int(half.negatives[:at].sum()) for half, at in crossed)
    return CriticalUse(
        code=classification.critical,
        threshold=share_of(odds_edge(_finding(whole.positives, wanted))),
        wanted=wanted,
        sensitivity=found / positives,
        specificity=spared / negatives if negatives else None,
        positives=positives,
        negatives=negatives,
    )


def _finding(positives: Counts, wanted: float) -> int:
    """The last bin from which on `wanted` of the pictures lie."""
    from_here_on = positives[::-1].cumsum()[::-1]
    return int(np.flatnonzero(from_here_on >= wanted * positives.sum())[-1])


def _unusual(halves: Sequence[_Pooled], whole: _Pooled) -> UnusualUse | None:
    """None where a half has no oddities, or so many pictures are in the last bin that nothing lies beyond."""
    if not all(half.oddity.sum() for half in halves):
        return None
    ends = [_holding(half.oddity) for half in (*halves, whole)]
    if ends[-1] >= ODDITY_BINS:
        return None
    beyond = sum(int(half.oddity[end:].sum()) for half, end in zip(halves, ends[1::-1], strict=True))
    return UnusualUse(threshold=oddity_edge(ends[-1]), share=beyond / int(whole.oddity.sum()))


def _holding(oddity: Counts) -> int:
    """The first bin before which `USUAL_SHARE` of the pictures lie; one past the last where there is none."""
    return int(np.flatnonzero(oddity.cumsum() >= USUAL_SHARE * oddity.sum())[0]) + 1


def share_of(odds: float) -> float:
    """The share of a class with these log-odds."""
    return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


def _sum(rows: Sequence[Sequence[int]], length: int) -> Counts:
    total: Counts = np.array(rows, np.int64).reshape(-1, length).sum(0)
    return total


def _added(parts: Iterable[Reliability]) -> Reliability:
    every = list(parts)
    return Reliability(
        images=tuple(map(sum, zip(*(each.images for each in every), strict=True))),
        correct=tuple(map(sum, zip(*(each.correct for each in every), strict=True))),
        confidence=tuple(map(math.fsum, zip(*(each.confidence for each in every), strict=True))),
    )

"""The figures that a classification's models are judged by, as a card has them: from counts, with intervals where those
are known; pure."""

from __future__ import annotations

from collections.abc import Collection

from concilia_kit import judging
from concilia_kit.classification import Classification, Metric
from concilia_kit.wire.training import EvaluationReport

from concilia_aggregator import scores
from concilia_aggregator.card import figures, intervals
from concilia_aggregator.card.intervals import Interval

ALWAYS: tuple[Metric, ...] = ("balanced_accuracy", "accuracy")
"""What a card has of any model, whatever it is judged by."""


def on_card(told: Classification) -> tuple[Metric, ...]:
    """What it is judged by, in that order, and what a card always has: the critical class's recall is among it."""
    critical = () if told.critical is None else (f"{judging.SENSITIVITY}:{told.critical}",)
    return tuple(dict.fromkeys((*told.metrics, *ALWAYS, *critical)))


def figure(metric: Metric, reports: Collection[EvaluationReport], told: Classification) -> Interval | float | None:
    """A figure of some sites' pictures together; a number alone where no interval is known, as of areas."""
    name, place = judging.split(metric, told)
    matrix = figures.confusion(reports, len(told.classes))
    if name == "balanced_accuracy":
        return intervals.balanced_accuracy(matrix)
    if name == "accuracy":
        return intervals.accuracy(matrix)
    if name == judging.SENSITIVITY and place is not None:
        return intervals.recalls(matrix)[place]
    pooled = scores.pooled(list(reports), told)
    return None if pooled is None else judging.value(metric, pooled, told)


def text(found: Interval | float | None) -> str:
    """A figure as a card has it."""
    return figures.with_limits(found) if isinstance(found, Interval) else figures.share(found)

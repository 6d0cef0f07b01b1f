"""A card's figures: sums over sites, shares with their intervals, and how honest the probabilities are; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from concilia_kit.wire.training import SCORE_BINS, EvaluationReport

from concilia_aggregator.card.intervals import Interval, wilson

Matrix = list[list[int]]


def confusion(reports: Iterable[EvaluationReport], classes: int) -> Matrix:
    """Sum of confusion matrices, rows true."""
    total = [[0] * classes for _ in range(classes)]
    for report in reports:
        for row, told in zip(total, report.confusion, strict=True):
            row[:] = [have + more for have, more in zip(row, told, strict=True)]
    return total


def precisions(matrix: Sequence[Sequence[int]]) -> list[Interval | None]:
    """Of the pictures that were told to be of a class, the share that are; None of a class that was never told."""
    columns = [sum(row[place] for row in matrix) for place in range(len(matrix))]
    return [wilson(matrix[place][place], of) if of else None for place, of in enumerate(columns)]


def calibration_errors(reports: Sequence[EvaluationReport], classes: int) -> list[float | None]:
    """For each class: how far its probabilities are from how often it is true, at least, averaged over pictures.

    Of the pictures whose probability fell into a bin, the share that are of the class should lie within the bin; what
    it lies outside counts. So nothing is invented that bins hide, and a small error may be hidden in one (1/32).
    Source: expected calibration error (Naeini et al. 2015), a class at a time (Nixon et al. 2019).
    """
    found: list[float | None] = []
    for place in range(classes):
        error, pictures = 0.0, 0
        for bin_ in range(SCORE_BINS):
            positive = sum(report.positives[place][bin_] for report in reports)
            both = positive + sum(report.negatives[place][bin_] for report in reports)
            if both:
                share = positive / both
                outside = max(bin_ / SCORE_BINS - share, share - (bin_ + 1) / SCORE_BINS, 0.0)
                error, pictures = error + both * outside, pictures + both
        found.append(error / pictures if pictures else None)
    return found


def share(value: float | None) -> str:
    """A share as a card has it."""
    return "–" if value is None else f"{value:.3f}"


def with_limits(value: Interval | None) -> str:
    """A share with its 95 % interval."""
    return "–" if value is None else f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"

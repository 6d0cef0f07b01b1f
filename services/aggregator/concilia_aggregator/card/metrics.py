"""A card's section of figures: pooled, by class and by site; pure."""

from __future__ import annotations

from collections.abc import Mapping

from concilia_kit import judging
from concilia_kit.classification import Classification, Metric
from concilia_kit.wire.jobs import RoundView
from concilia_kit.wire.training import EvaluationReport

from concilia_aggregator.card import figures, intervals, judged
from concilia_aggregator.card.facts import Facts
from concilia_aggregator.card.figures import share, with_limits
from concilia_aggregator.card.markdown import code, plain, table


def metrics(facts: Facts) -> str:
    """The section, or that nobody measured."""
    if not facts.reports:
        return "Nobody measured the published model."
    return "\n\n".join((_pooled(facts), _by_class(facts), _sites(facts), _confusion(facts)))


def _pooled(facts: Facts) -> str:
    told = facts.job.spec.classification
    measured = [list(reports.values()) for reports in (facts.reports, facts.baseline)]
    losses = [_loss(reports) for reports in (facts.reports, facts.baseline)]
    rows = []
    for metric in judged.on_card(told):
        now, before = (judged.text(judged.figure(metric, reports, told)) for reports in measured)
        rows.append((_title(metric, told), now, before))
    rows.append(("Loss", share(losses[0]), share(losses[1])))
    turned = " Outputs are means over each picture and its turns." if facts.job.spec.evaluation.flips else ""
    return f"All sites' held-out pictures together.{turned}\n\n" + table(
        ("", "published model", "initial weights"), rows
    )


def _title(metric: Metric, told: Classification) -> str:
    name, place = judging.split(metric, told)
    if place is None:
        words = judging.words(metric, told)
        return f"{words[0].upper()}{words[1:]}"
    return f"{plain(told.classes[place].name)}: {'recall' if name == judging.SENSITIVITY else 'AUC'}"


def _loss(reports: Mapping[str, EvaluationReport]) -> float | None:
    images = sum(each.images for each in reports.values())
    return sum(each.loss_sum for each in reports.values()) / images if images else None


def _by_class(facts: Facts) -> str:
    told = facts.job.spec.classification
    reports = list(facts.reports.values())
    matrix = figures.confusion(reports, len(told.classes))
    measured = _measured(facts)
    areas = measured.pooled.auc if measured is not None and measured.pooled is not None else None
    columns = zip(
        told.classes,
        matrix,
        intervals.recalls(matrix),
        figures.precisions(matrix),
        areas or [None] * len(told.classes),
        figures.calibration_errors(reports, len(told.classes)),
        strict=True,
    )
    rows = [
        (plain(each.name), str(sum(row)), with_limits(recall), with_limits(precision), share(area), share(error))
        for each, row, recall, precision, area, error in columns
    ]
    return "### By class\n\n" + table(("class", "pictures", "recall", "precision", "AUC", "calibration error"), rows)


def _sites(facts: Facts) -> str:
    told = facts.job.spec.classification
    rows = []
    for hospital, report in facts.by_site():
        found = [judged.text(judged.figure(metric, [report], told)) for metric in judged.on_card(told)]
        rows.append((plain(facts.site(hospital)), str(report.images), *found))
    titles = [_column(metric, told) for metric in judged.on_card(told)]
    return "### By site\n\n" + table(("site", "pictures", *titles), rows)


def _column(metric: Metric, told: Classification) -> str:
    name, place = judging.split(metric, told)
    if place is None:
        return judging.words(metric, told)
    return f"{'recall' if name == judging.SENSITIVITY else 'AUC'} of {code(told.codes[place])}"


def _confusion(facts: Facts) -> str:
    codes = facts.job.spec.classification.codes
    matrix = figures.confusion(facts.reports.values(), len(codes))
    rows = [[code(name), *map(str, row)] for name, row in zip(codes, matrix, strict=True)]
    return "### Confusion\n\nRows are what pictures show, columns what was told.\n\n" + table(
        ("", *map(code, codes)), rows
    )


def _measured(facts: Facts) -> RoundView | None:
    """The round whose evaluation is the published model's, the newest of several."""
    return next((each for each in reversed(facts.job.rounds) if each.model == facts.model and each.pooled), None)

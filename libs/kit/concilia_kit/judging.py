"""By what the models of a classification are judged: figures that it names, of scores that every evaluation has; pure.

All are shares, from 0 to 1, the larger the better. `balanced_accuracy` and `accuracy` are of all classes together,
`macro_auc` is the mean of the areas under the ROC curve, each class against the rest, over the classes that have one,
`sensitivity:CODE` one class's recall, `auc:CODE` its area.
"""

from __future__ import annotations

from concilia_kit.classification import JUDGED_BY, Classification, Metric
from concilia_kit.wire.jobs import Scores

SENSITIVITY, AUC = "sensitivity", "auc"


def headline(classification: Classification) -> Metric:
    """The figure that is shown first, and that a job's target is of."""
    return classification.metrics[0]


def shown(classification: Classification) -> tuple[Metric, ...]:
    """What is shown of a model at a glance: what it is judged by, in that order, and then what is shown of every one,
    named or not: to choose what comes first is not to choose what is hidden."""
    critical = () if classification.critical is None else (f"{SENSITIVITY}:{classification.critical}",)
    return tuple(dict.fromkeys((*classification.metrics, *JUDGED_BY, *critical)))


def value(metric: Metric, scores: Scores, classification: Classification) -> float | None:
    """A figure of scores; None where a class has no pictures."""
    name, place = split(metric, classification)
    if place is not None:
        return (scores.recall if name == SENSITIVITY else scores.auc)[place]
    if name == "macro_auc":
        areas = [area for area in scores.auc if area is not None]
        return sum(areas) / len(areas) if areas else None
    return scores.accuracy if name == "accuracy" else scores.balanced_accuracy


def words(metric: Metric, classification: Classification) -> str:
    """A figure's name as within a sentence."""
    name, place = split(metric, classification)
    if place is None:
        return {"macro_auc": "mean AUC"}.get(name, name.replace("_", " "))
    of = classification.classes[place].name
    return f"{of[0].lower()}{of[1:]} {'recall' if name == SENSITIVITY else 'AUC'}"


def split(metric: Metric, classification: Classification) -> tuple[str, int | None]:
    """A metric's name without its class, and where that class is; None where it has none."""
    name, _, code = metric.partition(":")
    return name, classification.codes.index(code) if code else None

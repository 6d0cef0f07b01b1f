"""By what models are judged: figures by name, the usual ones left unsaid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from concilia_kit import judging
from concilia_kit.classification import JUDGED_BY, LESIONS, Classification, Disease
from concilia_kit.wire.jobs import Scores

CHEST = Classification(
    name="chest",
    classes=(Disease(code="normal", name="Normal"), Disease(code="pneumonia", name="Pneumonia")),
    critical="pneumonia",
)
FOUND = Scores(
    images=10, accuracy=0.9, balanced_accuracy=0.8, loss=1.0, recall=(0.7, 0.9), melanoma_recall=0.9, auc=(0.6, None)
)


def judged_by(*metrics: str) -> Classification:
    return Classification.model_validate(CHEST.model_dump(mode="json") | {"metrics": metrics})


def test_the_usual_is_left_out_and_anything_else_is_told() -> None:
    assert (LESIONS.metrics, judging.headline(LESIONS)) == (JUDGED_BY, "balanced_accuracy")
    assert "metrics" not in CHEST.model_dump(mode="json")
    assert judged_by("balanced_accuracy") == CHEST
    other = judged_by("macro_auc", "sensitivity:pneumonia")
    told: dict[str, Any] = json.loads(other.model_dump_json())
    assert told["metrics"] == ["macro_auc", "sensitivity:pneumonia"]
    assert Classification.model_validate(told) == other != CHEST
    assert CHEST.unlike(other) == "'chest' has other metrics"


def test_what_is_shown_is_what_it_is_judged_by_and_what_was_always_shown_once() -> None:
    assert judging.shown(LESIONS) == ("balanced_accuracy", "sensitivity:mel")
    first = ("sensitivity:pneumonia", "accuracy")
    assert judging.shown(judged_by(*first)) == (*first, "balanced_accuracy")
    nothing = CHEST.model_copy(update={"critical": None})
    assert judging.shown(nothing) == ("balanced_accuracy",)


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("balanced_accuracy", 0.8, "balanced accuracy"),
        ("accuracy", 0.9, "accuracy"),
        ("macro_auc", 0.6, "mean AUC"),
        ("sensitivity:normal", 0.7, "normal recall"),
        ("sensitivity:pneumonia", 0.9, "pneumonia recall"),
        ("auc:normal", 0.6, "normal AUC"),
        ("auc:pneumonia", None, "pneumonia AUC"),
    ],
)
def test_each_figure_has_its_value_and_its_words(metric: str, value: float | None, words: str) -> None:
    assert judging.value(metric, FOUND, CHEST) == value
    assert judging.words(metric, CHEST) == words


def test_a_mean_of_no_areas_is_none() -> None:
    assert judging.value("macro_auc", FOUND.model_copy(update={"auc": (None, None)}), CHEST) is None

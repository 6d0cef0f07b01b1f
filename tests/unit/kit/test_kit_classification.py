"""Classifications: what they may be, how a file declares one, and what stays as it was for who names none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from concilia_kit.classification import (
    LESIONS,
    MAX_BYTES,
    Classification,
    Declaration,
    Disease,
    Layout,
    Turns,
)
from concilia_kit.lesions import CLASSES, FULL_NAMES, MEAN, MELANOMA, STD
from concilia_kit.wire.jobs import JobManifest, JobSpec
from concilia_kit.wire.models import InitialModelRequest, ModelRegistration, Prediction
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.training import SCORE_BINS, EvaluateTask, EvaluationReport, TrainTask
from pydantic import ValidationError

CHEST = Classification(
    name="Pneumonia on chest radiographs",
    classes=(Disease(code="normal", name="Normal"), Disease(code="pneumonia", name="Pneumonia")),
    critical="pneumonia",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    turns=Turns.NONE,
)

# As the version before classifications wrote a job that names nothing but what it must.
BEFORE = (
    '{"architecture":"resnet50","deadline_seconds":3600,"encoding":{"name":"none","share":null,"zstd":false},'
    '"evaluate_every":1,"evaluation":{"batch_size":64,"max_images":null},'
    '"initial":"0000000000000000000000000000000000000000000000000000000000000000",'
    '"local":{"augment":true,"balance":"loss","batch_size":32,"epochs":1,"image_size":224,"learning_rate":0.001,'
    '"max_images":null,"momentum":0.9,"proximal_mu":0,"weight_decay":0.0001},"name":"lesions","over_selection":null,'
    '"quorum":1,"recording":"each","rounds":3,"seed":0,'
    '"strategy":{"name":"fedavg","proximal_mu":0.01,"trim":null},"target":null}'
)


def test_the_default_is_ham10000_as_it_always_was() -> None:
    assert LESIONS.codes == CLASSES
    assert tuple(each.name for each in LESIONS.classes) == tuple(FULL_NAMES[code] for code in CLASSES)
    assert (LESIONS.critical_index, LESIONS.mean, LESIONS.std) == (MELANOMA, MEAN, STD)
    assert LESIONS.turns is Turns.FREE


def test_a_job_that_names_no_classification_has_the_canonical_json_and_the_id_of_before() -> None:
    spec = JobSpec(name="lesions", initial="0" * 64)
    assert rfc8785.dumps(spec.model_dump(mode="json")).decode() == BEFORE
    assert JobSpec.model_validate_json(BEFORE) == spec
    manifest = JobManifest(
        spec=spec.model_dump(mode="json"),
        created_by="0x" + "11" * 20,
        created_at="2026-11-24T00:00:00+00:00",
        code="concilia-aggregator 0.1.0",
        salt="0" * 32,
    )
    assert manifest.id() == "149b96528f60b551c32e8ce3e9fb505d05147ccca882062f9590c620f774fb27"


def task(**more: Any) -> TrainTask:
    named = {"job": "a" * 64, "round": 1, "architecture": "resnet18", "base": "b" * 64, "seed": 1, "deadline": 9}
    return TrainTask.model_validate(named | {"local": {}} | more)


def test_whatever_is_of_lesions_says_nothing_of_it_and_whatever_is_not_says_so() -> None:
    evaluation = {"job": "a" * 64, "round": 1, "architecture": "resnet18", "model": "b" * 64, "seed": 1}
    node = {
        "site": "ward",
        "source": "x",
        "training_lesions": 1,
        "held_out_lesions": 1,
        "overlapping_lesions": 0,
        "skipped_images": 0,
    }
    model = {"job": "a" * 64, "digest": "b" * 64, "architecture": "resnet18", "image_size": 64}

    def made(classification: Classification) -> list[Any]:
        counts = [1] * len(classification.classes)
        return [
            JobSpec(name="x", initial="0" * 64, classification=classification),
            task(classification=classification),
            EvaluateTask.model_validate(
                {**evaluation, "image_size": 64, "evaluation": {}, "classification": classification}
            ),
            NodeRegistration.model_validate(
                {**node, "training_images": counts, "held_out_images": counts, "classification": classification}
            ),
            ModelRegistration.model_validate({**model, "classification": classification}),
        ]

    for said, other in zip(made(LESIONS), made(CHEST), strict=True):
        assert "classification" not in said.model_dump(mode="json")
        assert "classification" not in json.loads(said.model_dump_json())
        told = other.model_dump(mode="json")
        assert told["classification"]["critical"] == "pneumonia"
        assert type(other).model_validate(told) == other
    assert "classes" not in InitialModelRequest(architecture="resnet18", weights="random").model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": [{"code": "one", "name": "One"}]}, "at least 2"),
        ({"classes": [{"code": f"c{n}", "name": "x"} for n in range(101)]}, "at most 100"),
        ({"classes": [{"code": "one", "name": "One"}] * 2, "critical": None}, "one code"),
        ({"critical": "flu"}, "critical class is none of the classes"),
        ({"std": [0.2, 0.0, 0.2]}, "greater than 0"),
        ({"mean": [0.2, 0.2]}, "mean.2"),
        ({"mean": [0.2, 0.2, 1.2]}, "less than or equal to 1"),
        ({"classes": [{"code": "../up", "name": "x"}, {"code": "b", "name": "y"}]}, "pattern"),
        ({"turns": "sideways"}, "turns"),
        ({"colour": "red"}, "extra"),
        ({"metrics": ["auc"]}, "pattern"),
        ({"metrics": ["auc:flu"]}, "a metric is of none of the classes"),
        ({"metrics": ["accuracy", "accuracy"]}, "a metric is named twice"),
        ({"metrics": []}, "at least 1"),
    ],
)
def test_what_cannot_be_a_classification_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Classification.model_validate(CHEST.model_dump(mode="json") | change)


def test_in_what_two_differ_is_said_in_words() -> None:
    assert CHEST.unlike(CHEST.model_copy()) == ""
    assert "'HAM10000'" in CHEST.unlike(LESIONS)
    other = CHEST.model_copy(update={"turns": Turns.FREE, "mean": MEAN})
    assert CHEST.unlike(other) == "'Pneumonia on chest radiographs' has other mean and turns"


def test_a_file_declares_a_classification_and_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "chest.json"
    document = {"classification": CHEST.model_dump(mode="json"), "layout": "medmnist"}
    path.write_text(json.dumps(document))
    assert Declaration.read(path) == Declaration(classification=CHEST, layout=Layout.MEDMNIST)
    path.write_text("{}")
    assert Declaration.read(path) == Declaration(classification=LESIONS, layout=Layout.HAM10000)
    for content in ("", "[]", "{", '{"layout": "tapes"}', '{"clasification": {}}', " " * (MAX_BYTES + 1)):
        path.write_text(content)
        with pytest.raises(ValueError, match="declaration") as error:
            Declaration.read(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        Declaration.read(tmp_path / "none.json")


def report(confusion: list[list[int]], **change: Any) -> dict[str, Any]:
    """A report whose probabilities are all in one bin."""

    def bins(count: int) -> list[int]:
        return [count, *[0] * (SCORE_BINS - 1)]

    images = sum(map(sum, confusion))
    return {
        "job": "a" * 64,
        "round": 1,
        "model": "b" * 64,
        "confusion": confusion,
        "loss_sum": 1.0,
        "images": images,
        "positives": [bins(sum(row)) for row in confusion],
        "negatives": [bins(images - sum(row)) for row in confusion],
        "lesions": images,
        "overlapping_lesions": 0,
        "skipped_images": 0,
        "seconds": 0.1,
        **change,
    }


@pytest.mark.parametrize(("classes", "accepted"), [(1, False), (2, True), (8, True), (100, True), (101, False)])
def test_a_report_may_have_from_2_to_100_classes(classes: int, accepted: bool) -> None:
    document = report([[(truth + 3 * guess) % 5 for guess in range(classes)] for truth in range(classes)])
    if accepted:
        assert len(EvaluationReport.model_validate(document).confusion) == classes
    else:
        with pytest.raises(ValidationError):
            EvaluationReport.model_validate(document)


@pytest.mark.parametrize("member", ["confusion", "positives", "negatives"])
def test_a_report_has_as_many_classes_everywhere(member: str) -> None:
    good = report([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(ValidationError, match="same classes"):
        EvaluationReport.model_validate(good | {member: good[member][:-1]})
    with pytest.raises(ValidationError, match="same classes"):
        EvaluationReport.model_validate(good | {"confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1, 0]]})


def test_a_node_counts_the_classes_that_it_names() -> None:
    node: dict[str, Any] = {
        "site": "ward",
        "source": "x",
        "training_lesions": 1,
        "held_out_lesions": 1,
        "overlapping_lesions": 0,
        "skipped_images": 0,
        "training_images": [1, 1],
        "held_out_images": [1, 1],
    }
    NodeRegistration.model_validate(node | {"classification": CHEST})
    for change in ({}, {"classification": CHEST, "held_out_images": [1, 1, 1]}):
        with pytest.raises(ValidationError, match="count a class"):
            NodeRegistration.model_validate(node | change)


def test_a_prediction_is_of_the_models_classes() -> None:
    shares = [{"code": code, "name": code, "probability": 0.5} for code in CHEST.codes]
    told = {"model": "a" * 64, "job": "b" * 64, "milliseconds": 1.0}
    assert len(Prediction.model_validate(told | {"probabilities": shares}).probabilities) == 2
    with pytest.raises(ValidationError):
        Prediction.model_validate(told | {"probabilities": shares[:1]})

"""The worked example of docs/classifications.md, word for word: a second modality from drawn pictures to a prediction
and a verified job, by real processes of the centre and four hospitals, with no code changed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from concilia_kit.classification import Declaration
from concilia_kit.digests import of_json

PAGE = (Path(__file__).parents[2] / "docs" / "classifications.md").read_text()


def block(language: str) -> str:
    """The page's first block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def run(line: str, folder: Path, *more: str) -> str:
    """What a line of the page prints, with this Python's own programs."""
    words = shlex.split(line)
    program = {"python": [sys.executable], "concilia": [sys.executable, "-W", "ignore", "-m", "concilia"]}[words[0]]
    done = subprocess.run(
        [*program, *words[1:], *more], cwd=folder, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def example(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the example's check says, and the report of its demo."""
    folder = tmp_path_factory.mktemp("chests")
    (folder / "chest.json").write_text(block("json"))
    draw, check, demo = block("sh").strip().splitlines()
    run(draw, folder)
    looked = json.loads(run(check, folder))
    report = json.loads(run(demo, folder, "--json", "--port", str(free_ports(11))))
    return looked, report


def test_the_pages_declaration_is_one() -> None:
    declaration = Declaration.model_validate_json(block("json"))
    assert declaration.classification.codes == ("normal", "pneumonia")


def test_the_example_trains_over_hospitals_to_a_published_model(
    example: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    looked, report = example
    assert looked["lesions_per_class"] == {"normal": 200, "pneumonia": 200}
    job = report["job"]
    assert (job["phase"], len(job["rounds"])) == ("finished", 2)
    assert report["source"] == "drawn pictures of Pneumonia on chest radiographs"
    assert job["spec"]["classification"] == json.loads(block("json"))["classification"]
    assert of_json(job["manifest"]) == job["id"]  # which says what the job tells apart
    assert job["manifest"]["spec"]["classification"] == job["spec"]["classification"]
    held_out = sum(site["held_out_images"] for site in looked["sites"])
    for each in job["rounds"]:
        assert [len(row) for row in each["confusion"]] == [2, 2]
        assert sum(map(sum, each["confusion"])) == held_out
        assert each["pooled"]["melanoma_recall"] == each["pooled"]["recall"][1]
        assert len(each["sites"]) == 4
    assert (report["updates_logged"], report["signers"]) == (4, 4)


def test_its_model_predicts_in_its_own_classes_and_the_job_is_verified(
    example: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    _, report = example
    answer = report["prediction"]
    assert answer["model"] == report["job"]["model"]
    assert [(each["code"], each["name"]) for each in answer["probabilities"]] == [
        ("normal", "Normal"),
        ("pneumonia", "Pneumonia"),
    ]
    assert sum(each["probability"] for each in answer["probabilities"]) == pytest.approx(1)
    assert report["verdict"]["ok"], report["verdict"]

"""`concilia predict`, as it is typed, against a model service that answers by what a picture is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from concilia import overlays
from concilia.app import app
from concilia.client import Client
from concilia.commands import models
from concilia.predicting import percentile
from concilia_kit.problems import Conflict, NotFound, Problem
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

MODEL, JOB = "ab" * 32, "cd" * 32
CLASSES = ("sick", "well", "unsure")
NOTICE = "not for diagnosis"
PAGE = Path(__file__).parents[3] / "frontend/src/diagnosis/attention.js"


class Service:
    """Answers 'well', but of a red picture 'sick'; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.fails_from = 10**9
        self.besides: dict[str, Any] = {}
        self.problem: Problem = NotFound("no model is published yet", code="no_model")

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=[self.version()])
        if request.url.path.startswith("/v1/models/"):
            return httpx.Response(200, json=self.version())
        self.asked.append(request)
        if len(self.asked) > self.fails_from:
            return httpx.Response(self.problem.problem_status, json=self.problem.document())
        body = request.read()
        if b"broken" in body:
            document = Problem("cannot be read", status=422, code="image_unreadable").document()
            return httpx.Response(422, json=document)
        shares = (0.1, 0.7, 0.2)
        grid = [[1.0, 0.0], [0.0, 0.0]]
        told = {
            "model": MODEL,
            "job": JOB,
            "probabilities": [
                {"code": code, "name": code.title(), "probability": share}
                for code, share in zip(CLASSES, shares, strict=True)
            ],
            "attention": None,
            "milliseconds": 3.0,
            "notice": NOTICE,
        }
        told |= self.besides
        if request.url.params.get("attention") == "true":
            told["attention"] = [{"code": code, "grid": grid if code == "well" else [[0.0]]} for code in CLASSES]
        return httpx.Response(200, json=told)

    def version(self) -> dict[str, Any]:
        return {
            "digest": MODEL,
            "job": JOB,
            "architecture": "resnet18",
            "image_size": 64,
            "initial": "ef" * 32,
            "initial_origin": None,
            "rounds": 1,
            "contributors": [],
            "lineage": [],
            "published_at": "2026-01-01T00:00:00Z",
            "classification": {
                "name": "health",
                "classes": [{"code": code, "name": code.title()} for code in CLASSES],
                "critical": "sick",
            },
        }


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    double = Service()
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://model") as http:

        class Here:
            model = http

        monkeypatch.setattr(models, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        yield double


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seen" / "deeper").mkdir(parents=True)
    for name in ("b.png", "deeper/a.PNG", "c.jpg"):
        path = tmp_path / "seen" / name
        Image.new("RGB", (40, 20), (200, 10, 10)).save(path, "JPEG" if name == "c.jpg" else "PNG")
    (tmp_path / "seen" / "notes.txt").write_text("no picture")
    return tmp_path / "seen"


def typed(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def test_how_often_classes_come_is_told_with_each_picture(service: Service, folder: Path) -> None:
    assert typed(folder, "--class-counts", "3,40,7").exit_code == 0
    assert typed(folder / "c.jpg").exit_code == 0
    assert [each.url.params.get("class_counts") for each in service.asked] == ["3,40,7"] * 3 + [None]
    service.fails_from, service.problem = 0, Conflict("the model was not evaluated so", code="class_counts_unfit")
    refused = typed(folder, "--class-counts", "3,40,7")
    assert refused.exit_code == 1
    assert len(service.asked) == 5, "what is wrong with all pictures is asked once"


def test_a_folder_is_a_line_a_picture_and_a_summary(service: Service, folder: Path) -> None:
    done = typed(folder)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"well    0.700  sick 0.100  {folder / name}" for name in ("b.png", "c.jpg", "deeper/a.PNG")]
    assert re.fullmatch(
        r"3 of 3 pictures predicted, [\d.]+ ms a picture at the median, [\d.]+ ms at the 95th percentile", lines[3]
    )
    assert lines[4].startswith(f"model {MODEL[:12]}…")
    assert NOTICE in lines[4]
    assert len(service.asked) == 3
    assert "attention" not in str(service.asked[0].url)


def test_what_thresholds_say_is_in_the_line(service: Service, folder: Path) -> None:
    critical = {"code": "sick", "share": 0.1, "threshold": 0.05, "sensitivity": 0.9, "specificity": 0.5}
    unusual = {"oddity": 3.0, "threshold": 2.0}
    service.besides = {"critical": critical | {"above": True}, "unusual": unusual | {"beyond": True}}
    line = f"well    0.700  sick 0.100  {folder / 'b.png'}"
    assert typed(folder).stdout.splitlines()[0] == (
        f"{line} · sick above its threshold · unusual: its probabilities may mean nothing"
    )
    service.besides = {"critical": critical | {"above": False}, "unusual": unusual | {"beyond": False}}
    assert typed(folder).stdout.splitlines()[0] == line


def test_what_is_wrong_with_one_picture_is_told_and_the_rest_goes_on(service: Service, folder: Path) -> None:
    (folder / "a-broken.jpg").write_bytes(b"broken")
    done = typed(folder, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["pictures"], told["predicted"]) == (4, 3)
    assert 0 < told["p50_ms"] <= told["p95_ms"]
    first, second = told["answers"][:2]
    assert (first["file"], first["prediction"]) == (str(folder / "a-broken.jpg"), None)
    assert "image_unreadable" in first["fault"]
    assert (second["fault"], second["prediction"]["probabilities"][1]["probability"]) == (None, 0.7)
    assert "not predicted: cannot be read (image_unreadable)" in typed(folder).stdout


def test_what_is_wrong_with_all_ends_it_after_what_was_found_is_told(service: Service, folder: Path) -> None:
    service.fails_from = 1
    done = typed(folder)
    assert done.exit_code == 1
    assert "1 of 3 pictures predicted" in done.stdout
    assert "no_model" in done.stderr
    assert len(service.asked) == 2


def test_one_picture_is_told_in_full_as_before(service: Service, folder: Path) -> None:
    told = json.loads(typed(folder / "b.png", "--json").stdout)
    assert (told["model"], len(told["probabilities"])) == (MODEL, 3)
    table = typed(folder / "b.png").stdout
    assert table.index("well") < table.index("unsure") < table.index("sick")
    assert NOTICE in table
    (folder / "broken.png").write_bytes(b"broken")
    done = typed(folder / "broken.png")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "image_unreadable" in done.stderr


def test_a_model_may_be_named_by_its_beginning(service: Service, folder: Path) -> None:
    typed(folder / "b.png", "--model", "abab")
    assert service.asked[0].url.params["model"] == MODEL
    assert "no_model" in typed(folder / "b.png", "--model", "dead").stderr


@pytest.mark.parametrize("what", ["missing.png", "empty"])
def test_nothing_to_predict_is_a_mistake(service: Service, tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    assert typed(tmp_path / what).exit_code == 2
    assert service.asked == []


def test_a_name_cannot_write_on_the_terminal(service: Service, folder: Path) -> None:
    (folder / "d\x1b[31m\n.png").write_bytes((folder / "b.png").read_bytes())
    done = typed(folder)
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 6


# ----------------------------------------------------------------------------------------------------- attention


def test_maps_are_laid_over_the_pictures(service: Service, folder: Path, tmp_path: Path) -> None:
    done = typed(folder, folder / "b.png", "--attention", tmp_path / "maps")
    assert done.exit_code == 0, done.output
    found = sorted(str(each.relative_to(tmp_path / "maps")) for each in (tmp_path / "maps").rglob("*.png"))
    assert found == [
        "b.png.attention.png",
        "seen/b.png.attention.png",
        "seen/c.jpg.attention.png",
        "seen/deeper/a.PNG.attention.png",
    ]
    assert all(each.url.params["attention"] == "true" for each in service.asked)
    with Image.open(tmp_path / "maps" / "b.png.attention.png") as made:
        assert made.size == (40, 20)
        assert made.getpixel((39, 19)) == (200, 10, 10)
        red, green, blue = made.getpixel((0, 0))  # type: ignore[misc]
        yellow = overlays.colour(1.0)
        assert (red, green, blue) == pytest.approx(
            [a * 0.7 + b * 0.3 for a, b in zip(yellow, (200, 10, 10), strict=True)], abs=1.5
        )
        assert made.text["Warning"] == NOTICE  # type: ignore[attr-defined]
        assert MODEL in made.text["Source"]  # type: ignore[attr-defined]


def test_two_maps_of_one_name_are_refused_before_anything_is_asked(service: Service, folder: Path) -> None:
    done = typed(folder / "b.png", folder / "b.png", "--attention", folder.parent / "maps")
    assert done.exit_code == 2
    assert service.asked == []


def test_a_map_that_cannot_be_saved_is_told_beside_its_prediction(service: Service, folder: Path) -> None:
    (folder.parent / "maps").write_text("a file")
    done = typed(folder, "--attention", folder.parent / "maps")
    assert done.exit_code == 1
    assert done.stdout.count("its map was not saved") == 3
    assert "3 of 3 pictures predicted" in done.stdout


def test_a_turned_picture_is_drawn_upright_and_loses_what_was_written_in_it(tmp_path: Path) -> None:
    source = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "name of a patient"  # turned by 90 degrees; its description
    Image.new("RGB", (40, 20)).save(source, exif=exif)
    overlays.save(source, [[0.0]], tmp_path / "map.png", {})
    with Image.open(tmp_path / "map.png") as made:
        assert made.size == (20, 40)
    assert b"patient" not in (tmp_path / "map.png").read_bytes()


def test_a_picture_with_a_transparent_palette_can_be_drawn_on(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "p.png", transparency=b"\x00\xff")
    overlays.save(tmp_path / "p.png", [[1.0]], tmp_path / "map.png", {})
    with Image.open(tmp_path / "map.png") as made:
        assert made.mode == "RGB"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(overlays.PictureUnreadable):
        overlays.save(tmp_path / "broken.png", [[1.0]], tmp_path / "map.png", {})


def test_colours_are_the_pages() -> None:
    stops = re.findall(r"\[(\d+), (\d+), (\d+)\]", PAGE.read_text())
    assert [overlays.colour(place / 4) for place in range(5)] == [tuple(map(int, each)) for each in stops]
    shades = [overlays.opacity(value) for value in np.linspace(0, 1, 50)]
    assert (shades[0], shades[-1]) == (0, 0.7)
    assert shades == sorted(shades)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_the_smallest_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(each <= found for each in values) >= share * len(values)
    smaller = [each for each in values if each < found]
    assert not smaller or len(smaller) < share * len(values)

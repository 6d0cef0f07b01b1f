"""Many pictures, one after the other: which they are, what became of each, how long it took."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concilia_kit.problems import Problem
from concilia_kit.wire.models import ClassProbability, Prediction

from concilia import overlays
from concilia.client import Client
from concilia.connection import UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
# What is wrong with one picture says nothing of the next.
_OF_THE_PICTURE = frozenset({400, 413, 415, 422})


@dataclass(frozen=True)
class Picture:
    """A picture, and the name that it has among those that are asked about."""

    path: Path
    name: Path


@dataclass(frozen=True)
class Answer:
    """What became of a picture: a prediction, or why there is none. Seconds from sending it to its answer."""

    picture: Picture
    seconds: float
    prediction: Prediction | None
    fault: str | None
    map: Path | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "file": str(self.picture.path),
            "seconds": round(self.seconds, 4),
            "prediction": None if self.prediction is None else self.prediction.model_dump(mode="json"),
            "fault": self.fault,
            "attention_file": None if self.map is None else str(self.map),
        }


def remarks(prediction: Prediction) -> list[str]:
    """What a model's thresholds say of a picture, in sentences; none of a model without."""
    said = []
    if prediction.unusual is not None and prediction.unusual.notice is not None:
        said.append(prediction.unusual.notice)
    if (critical := prediction.critical) is not None:
        side = "above" if critical.above else "below"
        others = "" if critical.specificity is None else f", specificity {critical.specificity:.3f}"
        said.append(
            f"{critical.code} is {side} the threshold for a warning ({critical.share:.4f}, threshold "
            f"{critical.threshold:.4f}): sensitivity {critical.sensitivity:.3f}{others} on held-out pictures"
        )
    return said


def pictures_of(given: Sequence[Path]) -> list[Picture]:
    """The pictures that paths name: files themselves, whatever they are called; of folders all JPEG and PNG below
    them, by name. Raises `UsageError` where there is none."""
    found = []
    for path in given:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise UsageError(f"{path} has no JPEG or PNG in it")
            top = path.resolve().name
            found += [Picture(each, top / each.relative_to(path)) for each in inside]
        elif path.is_file():
            found.append(Picture(path, Path(path.name)))
        else:
            raise UsageError(f"{path} is no file and no folder")
    return found


def map_of(picture: Picture, folder: Path) -> Path:
    """Where a picture's map is saved."""
    return folder / picture.name.with_name(f"{picture.name.name}.attention.png")


def check_maps(pictures: Sequence[Picture], folder: Path) -> None:
    """Raise `UsageError` where the maps of two pictures would have one name."""
    seen: dict[Path, Path] = {}
    for each in pictures:
        target = map_of(each, folder)
        if target in seen:
            raise UsageError(f"the maps of {seen[target]} and {each.path} would both be {target}")
        seen[target] = each.path


def answers(
    to: Client, pictures: Sequence[Picture], model: str | None, folder: Path | None, class_counts: str | None = None
) -> Iterator[Answer]:
    """Ask about each picture, and save the likeliest class's map into `folder` where there is one.

    What is wrong with a picture is its answer. Raises `Problem` where the next one would not fare better.
    """
    for each in pictures:
        began = time.perf_counter()
        try:
            prediction = to.predict(each.path, model, attention=folder is not None, class_counts=class_counts)
        except OSError as error:
            yield Answer(each, time.perf_counter() - began, None, error.strerror or str(error))
            continue
        except Problem as problem:
            if problem.problem_status not in _OF_THE_PICTURE:
                raise
            yield Answer(each, time.perf_counter() - began, None, f"{problem.detail} ({problem.problem_code})")
            continue
        seconds = time.perf_counter() - began
        if folder is None:
            yield Answer(each, seconds, prediction, None)
        else:
            yield _with_map(each, seconds, prediction, map_of(each, folder))


def likeliest(prediction: Prediction) -> ClassProbability:
    """The class of the largest probability, the first of several."""
    return max(prediction.probabilities, key=lambda each: each.probability)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all does not exceed (nearest rank). Raises `ValueError` for none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _with_map(picture: Picture, seconds: float, prediction: Prediction, target: Path) -> Answer:
    first = likeliest(prediction)
    grids = {each.code: each.grid for each in prediction.attention or ()}
    if first.code not in grids:
        return Answer(picture, seconds, prediction, "the service sent no map of attention")
    told = {
        "Description": f"Where the network looked for {first.name}, probability {first.probability:.3f}",
        "Source": f"Concilia model {prediction.model}",
        "Warning": prediction.notice,
    }
    try:
        overlays.save(picture.path, grids[first.code], target, told)
    except (overlays.PictureUnreadable, OSError) as error:
        return Answer(picture, seconds, prediction, f"its map was not saved: {error}")
    return Answer(picture, seconds, prediction, None, target)

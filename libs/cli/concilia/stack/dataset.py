"""The demo's pictures: HAM10000 where a folder is given or found, drawn lesions otherwise, or what a file declares;
checked before anything starts.

The looking and the drawing are client-node's, run as the separate program that a hospital would run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from concilia_kit.wire.base import Wire
from pydantic import ConfigDict, ValidationError

from concilia.connection import UsageError

FOUND_AT = (Path("data/ham10000"), Path("var/ham10000"))
"""Where a dataset is looked for when none is named, relative to the working folder."""


class SiteReport(Wire):
    """One site: its name is also how a node is told to take it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    site: str
    training_images: int
    held_out_images: int


class DatasetReport(Wire):
    """What `python -m concilia_client_node.check` says of a folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str
    images: int
    sites: list[SiteReport]
    overlapping_lesions: int


def locate(named: Path | None, declared: Path | None = None) -> Path | None:
    """The dataset's folder, None where pictures must be drawn; of classes that a file declares, none is looked for.
    Raises `UsageError` for a named folder that is none."""
    if named is not None:
        if not named.is_dir():
            raise UsageError(f"DATA={named} is no folder; name the one that holds HAM10000_metadata")
        return named
    if declared is not None:
        return None
    return next((path for path in FOUND_AT if path.is_dir()), None)


def draw(folder: Path, images: int, seed: int, declared: Path | None = None) -> None:
    """Draw lesions into a folder in HAM10000's layout, or what a file declares. Raises `UsageError`."""
    asked = ("--images", str(images), "--seed", str(seed), *_option(declared))
    _run("concilia_client_node.drawn", str(folder), *asked)


def picture(folder: Path, target: Path, declared: Path | None = None) -> Path:
    """A picture of a dataset as a file; `target` is written where it is none yet. Raises `UsageError`."""
    if declared is None and (found := sorted(folder.glob("**/*.jpg"))):
        return found[0]
    _run("concilia_client_node.check", str(folder), "--picture", str(target), *_option(declared))
    return target


def check(folder: Path, seed: int, declared: Path | None = None) -> DatasetReport:
    """Look at a dataset. Raises `UsageError` with the loader's one line."""
    output = _run("concilia_client_node.check", str(folder), "--seed", str(seed), *_option(declared))
    try:
        return DatasetReport.model_validate_json(output)
    except ValidationError as error:
        raise UsageError(f"{folder} could not be looked at: {output[:200]}") from error


def _option(declared: Path | None) -> tuple[str, ...]:
    return () if declared is None else ("--classification", str(declared))


def _run(module: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - the command is ours
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UsageError(lines[-1].removeprefix("error: "))
    return done.stdout

"""Small folders in HAM10000's layout, and a consortium in memory behind real HTTP."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from concilia_client_node import drawn
from concilia_kit.lesions import CLASSES
from PIL import Image

FolderMaker = Callable[..., Path]


def _double() -> Any:
    name = "client_node_consortium_double"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("consortium_double.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def consortium() -> Iterator[Any]:
    module = _double()
    with module.serve(module.ConsortiumDouble()) as double:
        yield double


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 240 drawn pictures."""
    folder = tmp_path_factory.mktemp("drawn") / "lesions"
    drawn.write_drawn(folder, images=240, seed=3)
    return folder


def rows_of(lesions_per_class: int, images_per_lesion: int, collections: tuple[str, ...]) -> list[dict[str, str]]:
    rows = []
    for label, code in enumerate(CLASSES):
        for index in range(lesions_per_class):
            for view in range(images_per_lesion):
                rows.append(
                    {
                        "lesion_id": f"L{label}{index:03d}",
                        "image_id": f"I{label}{index:03d}{view}",
                        "dx": code,
                        "dx_type": "histo",
                        "age": "",
                        "sex": "unknown",
                        "localization": "back",
                        "dataset": collections[index % len(collections)],
                    }
                )
    return rows


@pytest.fixture
def make_folder(tmp_path: Path) -> FolderMaker:
    """Write a folder: rows, table names (and whether each has the `dataset` column), and where pictures go."""

    def make(
        *,
        lesions: int = 4,
        views: int = 1,
        tables: dict[str, bool] | None = None,
        parts: tuple[str, ...] = ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        change: Callable[[list[dict[str, str]]], object] = lambda rows: None,
        without: tuple[str, ...] = (),
        pictures: bool = True,
        suffix: str = ".jpg",
        name: str = "folder",
    ) -> Path:
        folder = tmp_path / name
        rows = rows_of(lesions, views, ("east", "west"))
        files = [row["image_id"] for row in rows]
        change(rows)
        for part in parts:
            (folder / part).mkdir(parents=True, exist_ok=True)
        for table, with_dataset in (tables or {"HAM10000_metadata.csv": True}).items():
            hidden = {*without, *(() if with_dataset else ("dataset",))}
            columns = [column for column in rows[0] if column not in hidden]
            with (folder / table).open("w", newline="") as file:
                writer = csv.DictWriter(file, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        rng = np.random.default_rng(0)
        for position, image in enumerate(files if pictures else ()):
            pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / parts[position % len(parts)] / f"{image}{suffix}")
        return folder

    return make

"""Drawn lesions: HAM10000's layout, the same from the same seed, and something a network can learn."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from concilia_client_node import dataset, drawn, evaluation, pictures, training
from concilia_client_node.dataset import DRAWN_MARK
from concilia_client_node.errors import DatasetError
from concilia_client_node.split import SiteChoice
from concilia_kit.lesions import CLASSES
from concilia_kit.wire.training import Balance, LocalTraining
from torch import nn

CPU = torch.device("cpu")


def test_the_layout_is_the_public_one(drawn_folder: Path) -> None:
    with (drawn_folder / "HAM10000_metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == drawn.COLUMNS
    assert 200 <= len(rows) <= 280
    for part in drawn.PARTS:
        assert 80 <= len(list((drawn_folder / part).glob("*.jpg"))) <= 160
    assert max(Counter(row["lesion_id"] for row in rows).values()) > 1
    assert {row["dx"] for row in rows} == set(CLASSES)
    mixes = Counter((row["dataset"], row["dx"]) for row in rows)
    assert mixes["drawn_north", "akiec"] == 0 < mixes["drawn_south", "akiec"]
    folder = dataset.read(drawn_folder)
    assert folder.source == "drawn lesions"
    assert folder.collections() == tuple(drawn.COLLECTIONS)


def test_equal_seeds_draw_equal_pictures() -> None:
    def picture(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return drawn.draw("mel", np.random.default_rng(seed), np.random.default_rng(5))

    assert (picture(1) == picture(1)).all()
    assert (picture(1) != picture(2)).any()
    assert picture(1).shape == (150, 200, 3)
    assert drawn.plan(100, 0) == drawn.plan(100, 0) != drawn.plan(100, 1)


def test_two_lesions_of_every_class_even_in_the_smallest_folder(tmp_path: Path) -> None:
    assert drawn.main([str(tmp_path / "new"), "--images", str(2 * drawn.MINIMUM), "--seed", "9"]) == 0
    assert min(Counter(dataset.read(tmp_path / "new").lesions().values()).values()) >= 2


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    assert drawn.main([str(tmp_path / "mine")]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(DatasetError):
        drawn.write_drawn(tmp_path / "few", images=3)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "precious"]


def test_a_crash_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert drawn.main([str(tmp_path / "new"), "--images", "60"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_small_network_learns_them(drawn_folder: Path, tmp_path: Path) -> None:
    site = dataset.choose(dataset.read(drawn_folder), SiteChoice.parse("all"), 0)
    decoded = pictures.decode_site(site, 32, tmp_path, 2)
    assert (drawn_folder / DRAWN_MARK).exists()
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, len(CLASSES)),
    )
    local = LocalTraining(epochs=8, batch_size=16, learning_rate=0.02, image_size=32, balance=Balance.SAMPLING)
    training.train(network, decoded.training, local, 1, CPU)
    counts = evaluation.evaluate(network, decoded.held_out, 64, None, 0, CPU)
    recalls = [row[label] / sum(row) for label, row in enumerate(counts.confusion)]
    assert sum(recalls) / len(recalls) > 0.5  # chance is 0.14

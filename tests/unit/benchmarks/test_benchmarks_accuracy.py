"""The accuracy bench: a temperature comes from other lesions than those it is judged by, and runs are kept whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from concilia_client_node import networks
from concilia_client_node.calibrating import second_half
from concilia_kit.wire.training import Architecture

from benchmarks import accuracy, accuracy_report, federated_sites


def _answers(seed: int, temperature: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits whose classes were drawn from their own softmax, then multiplied."""
    source = np.random.default_rng(seed)
    logits = source.normal(0, 2, (2000, 7))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (shares.cumsum(1) < source.random((2000, 1))).sum(1)
    return logits * temperature, labels, np.arange(2000)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_logits_were_multiplied_by_is_found(true: float) -> None:
    logits, labels, lesions = _answers(1, true)
    shares = np.exp(logits / true) / np.exp(logits / true).sum(1, keepdims=True)
    assert np.abs(accuracy_report.cross_fitted(logits, labels, lesions) - shares).max() < 0.05


def test_each_half_is_answered_at_the_other_halfs_temperature() -> None:
    logits, labels, lesions = _answers(2, 1.0)
    plain = accuracy_report.cross_fitted(logits, labels, lesions)
    first = np.array(second_half([str(each) for each in lesions], labels, 0))
    assert 800 < first.sum() < 1200
    moved = logits.copy()
    moved[first] *= 4  # changes the temperature of the other half, and so its answers, by four
    changed = accuracy_report.cross_fitted(moved, labels, lesions)
    assert np.abs(changed[~first] - plain[~first]).max() > 0.2
    assert np.allclose(changed.sum(1), 1)


def test_weights_that_are_not_there_are_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main(["--weights", str(tmp_path / "none"), "--runs", str(tmp_path)]) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_a_trunk_of_another_architecture_is_refused(tmp_path: Path) -> None:
    networks.save(networks.build(Architecture.RESNET18), tmp_path / "weights")
    level = federated_sites.Level(None, tmp_path / "weights", True, 32, "", tmp_path)
    with pytest.raises(ValueError, match="tensors of mobilenet_v2's trunk"):
        federated_sites.whole(level, 0)


def test_runs_are_made_once_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--rounds", "1", "--images", "28", "--size", "32", "--seeds", "1", "--workers", "1"]
    given += ["--contenders", "federated", "--runs", str(tmp_path), "--output", str(tmp_path), "--arch", "resnet18"]
    assert accuracy.main(given) == 0
    told = capsys.readouterr()
    assert "1 of 1 runs on drawn lesions to make" in told.err
    assert "| federated | 1 | 0." in told.out
    made = [path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")]
    assert accuracy.main(given) == 0
    assert "0 of 1 runs" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")] == made

"""Screening: each reason, and what peers were seen to let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_aggregator.screening import Base, Limits, screen
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import Reason

LIMITS = Limits(max_samples=1000, max_norm_ratio=10.0)
BASE: dict[str, Any] = {
    "w": np.linspace(-1, 1, 600_000, dtype=np.float32).reshape(3, -1),
    "n": np.array(4, np.int64),
}


def write(path: Path, tensors: dict[str, Any]) -> TensorFile:
    path.write_bytes(safetensors.numpy.save(tensors))
    return TensorFile.open(path)


def changed(value: float, position: int = 599_999) -> dict[str, Any]:
    w = BASE["w"].copy()
    w.reshape(-1)[position] = value
    return {**BASE, "w": w}


@pytest.mark.parametrize(
    ("update", "samples", "registered", "reason"),
    [
        (BASE, 10, None, None),
        (changed(0.5), 10, 10, None),
        ({**BASE, "x": np.ones(1, np.float32)}, 10, None, Reason.NAME_MISMATCH),
        ({"w": BASE["w"]}, 10, None, Reason.NAME_MISMATCH),
        ({**BASE, "w": BASE["w"].reshape(-1)}, 10, None, Reason.SHAPE_MISMATCH),
        ({**BASE, "w": BASE["w"].astype(np.float64)}, 10, None, Reason.DTYPE_MISMATCH),
        (changed(float("nan")), 10, None, Reason.NON_FINITE),
        (changed(float("inf"), 0), 10, None, Reason.NON_FINITE),
        (changed(float("-inf")), 10, None, Reason.NON_FINITE),
        (changed(3e38), 10, None, Reason.NORM_TOO_LARGE),
        ({**BASE, "w": BASE["w"] * 12}, 10, None, Reason.NORM_TOO_LARGE),
        (BASE, 10**9, None, Reason.SAMPLE_COUNT),
        (BASE, 1001, 10**9, Reason.SAMPLE_COUNT),
        (BASE, 11, 10, Reason.SAMPLE_COUNT),
        (BASE, 0, None, Reason.SAMPLE_COUNT),
    ],
)
def test_reasons(
    tmp_path: Path, update: dict[str, Any], samples: int, registered: int | None, reason: Reason | None
) -> None:
    base = Base.of(write(tmp_path / "base", BASE))
    assert screen(write(tmp_path / "update", update), base, samples, registered, LIMITS) is reason


def test_a_base_of_zeros_still_bounds_the_norm(tmp_path: Path) -> None:
    base = Base.of(write(tmp_path / "base", {"w": np.zeros(4, np.float32)}))
    fine = write(tmp_path / "fine", {"w": np.full(4, 5, np.float32)})
    far = write(tmp_path / "far", {"w": np.full(4, 6, np.float32)})
    assert screen(fine, base, 1, None, LIMITS) is None
    assert screen(far, base, 1, None, LIMITS) is Reason.NORM_TOO_LARGE

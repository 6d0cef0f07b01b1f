"""Folding: against a plain mean, to the bit across block borders and orders, in bounded memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_aggregator import folding, strategies
from concilia_aggregator.folding import Recipe, fold
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.jobs import Strategy, StrategyName
from concilia_kit.wire.training import Architecture, LocalTraining
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

RECIPE = Recipe(Architecture.RESNET18, 3, Strategy())


def write(path: Path, tensors: dict[str, Any]) -> TensorFile:
    path.write_bytes(safetensors.numpy.save(tensors))
    return TensorFile.open(path)


@given(
    updates=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 50)), elements=st.floats(-1e6, 1e6, width=32)
    ),
    data=st.data(),
)
def test_fedavg_is_the_weighted_mean(updates: np.ndarray[Any, Any], data: st.DataObject) -> None:
    n = len(updates)
    samples = data.draw(st.lists(st.integers(1, 10**6), min_size=n, max_size=n))
    result = strategies.FedAvg().fold(list(updates), samples)
    exact = np.average(updates.astype(np.longdouble), axis=0, weights=np.asarray(samples, np.longdouble))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, exact.astype(np.float64), rtol=1e-6, atol=1e-6)


@given(st.integers(1, 8), st.lists(st.integers(1, 10**9), min_size=1, max_size=8))
def test_equal_updates_fold_to_themselves(seed: int, samples: list[int]) -> None:
    block = np.random.default_rng(seed).normal(size=33).astype(np.float32)
    assert strategies.FedAvg().fold([block] * len(samples), samples).tobytes() == block.tobytes()


def test_counters_take_the_largest_value_in_any_order() -> None:
    blocks = [np.array([3, 9], np.int64), np.array([7, 1], np.int64)]
    for order in (blocks, blocks[::-1]):
        result = strategies.FedAvg().fold(order, [1, 1000])
        assert result.tolist() == [7, 9]
        assert result.dtype == np.int64


def test_nothing_to_average() -> None:
    with pytest.raises(ValueError, match="nothing"):
        strategies.FedAvg().fold([], [])


def test_strategies_set_the_proximal_term() -> None:
    local = LocalTraining(proximal_mu=0.5)
    assert strategies.make(Strategy()).local(local).proximal_mu == 0.0
    prox = Strategy(name=StrategyName.FEDPROX, proximal_mu=0.1)
    assert strategies.make(prox).local(local).proximal_mu == 0.1


def test_a_file_is_folded_across_blocks_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    models = [
        {
            "w": rng.normal(size=(70, 31)).astype(np.float32),
            "h": rng.normal(size=9).astype(np.float16),
            "n": np.array(i, np.int64),
            "empty": np.empty((0, 3), np.float32),
        }
        for i in range(3)
    ]
    files = [write(tmp_path / str(i), tensors) for i, tensors in enumerate(models)]
    digests = []
    for block in (1, 7, 1 << 18):
        monkeypatch.setattr(folding, "_BLOCK", block)
        digests.append(fold(files, [1, 2, 3], RECIPE, tmp_path / f"out{block}"))
    assert len(set(digests)) == 1
    data = (tmp_path / "out7").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digests[0]
    result = safetensors.numpy.load(data)
    expected = np.average([m["w"].astype(np.float64) for m in models], axis=0, weights=[1, 2, 3])
    np.testing.assert_allclose(result["w"], expected, rtol=1e-6)
    assert result["n"] == 2
    assert result["h"].dtype == np.float16
    assert Recipe.of(TensorFile.open(tmp_path / "out7")) == RECIPE


def test_a_model_without_a_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recipe"):
        Recipe.of(write(tmp_path / "m", {"w": np.ones(2, np.float32)}))


def test_memory_does_not_grow_with_updates(tmp_path: Path) -> None:
    big = {"w": np.ones(8_000_000, np.float32)}  # 32 MB a file
    files = [write(tmp_path / str(i), big) for i in range(6)]
    tracemalloc.start()  # NumPy reports its buffers to it; mapped files are not among them
    fold(files, [1] * 6, RECIPE, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # a few blocks; less than a third of one file


def test_a_failed_fold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to fold"):
        fold([], [], RECIPE, tmp_path / "out")
    one = write(tmp_path / "1", {"w": np.ones(2, np.float32)})
    two = write(tmp_path / "2", {"v": np.ones(2, np.float32)})
    with pytest.raises(KeyError):
        fold([one, two], [1, 1], RECIPE, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]

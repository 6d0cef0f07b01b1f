"""Folding: against a plain mean, to the bit across windows, threads and groups, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_aggregator import folding, strategies, windows
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.windows import Stretch
from concilia_kit.tensorfile import TensorFile, TensorSpec
from concilia_kit.wire.strategy import Strategy, StrategyName
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
            "b": rng.normal(size=5).astype(np.float32),
            "v": rng.normal(size=(3, 3)).astype(np.float32),
            "h": rng.normal(size=9).astype(np.float16),
            "n": np.array(i, np.int64),
            "empty": np.empty((0, 3), np.float32),
        }
        for i in range(3)
    ]
    files = [write(tmp_path / str(i), tensors) for i, tensors in enumerate(models)]
    # The same numbers with the tensors in another order: a window is in one piece there only now and then.
    turned = [write_turned(tmp_path / f"turned{i}", tensors) for i, tensors in enumerate(models)]
    digests = []
    for window in (1, 7, 64, 1 << 18):
        for group, threads in ((64, 1), (2, 3)):
            for some in (files, turned, [files[0], turned[1], files[2]]):
                monkeypatch.setattr(windows, "_MOST", window)
                monkeypatch.setattr(windows, "_LEAST", window)
                monkeypatch.setattr(folding, "GROUP", group)
                digests.append(fold(some, [1, 2, 3], RECIPE, tmp_path / f"out{window}", threads=threads))
    assert len(set(digests)) == 1
    data = (tmp_path / "out7").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digests[0]
    result = safetensors.numpy.load(data)
    for name in ("w", "b", "v"):
        expected = np.average([m[name].astype(np.float64) for m in models], axis=0, weights=[1, 2, 3])
        np.testing.assert_allclose(result[name], expected, rtol=1e-6)
    assert result["n"] == 2
    assert result["h"].dtype == np.float16
    assert Recipe.of(TensorFile.open(tmp_path / "out7")) == RECIPE


def write_turned(path: Path, tensors: dict[str, np.ndarray]) -> TensorFile:
    """A file with its tensors in descending order of name, which the format allows."""
    order = sorted(tensors, reverse=True)
    document, position = {}, 0
    for name in order:
        end = position + tensors[name].nbytes
        kind = {"f4": "F32", "f2": "F16", "i8": "I64"}[tensors[name].dtype.str[1:]]
        document[name] = {"dtype": kind, "shape": tensors[name].shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(document).encode()
    data = b"".join(tensors[name].tobytes() for name in order)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return TensorFile.open(path)


def test_windows_are_full_but_for_the_last_of_a_dtype() -> None:
    float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
    specs = {
        "a": TensorSpec(float32, (5,)),
        "b": TensorSpec(float32, (0,)),
        "c": TensorSpec(float32, ()),
        "d": TensorSpec(float32, (2, 5)),
        "n": TensorSpec(int64, (2,)),
    }
    found = list(windows.windows(specs, list(specs), 4))
    assert found == [
        (Stretch("a", 0, 4),),
        (Stretch("a", 4, 5), Stretch("c", 0, 1), Stretch("d", 0, 2)),
        (Stretch("d", 2, 6),),
        (Stretch("d", 6, 10),),
        (Stretch("n", 0, 2),),
    ]


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


def test_the_order_of_updates_changes_no_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    files = [write(tmp_path / str(i), {"w": rng.normal(size=5000).astype(np.float32)}) for i in range(5)]
    digests = {
        fold([files[i] for i in order], [100 + i for i in order], RECIPE, tmp_path / "out")
        for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1])
    }
    assert len(digests) == 1


def test_tensors_in_another_order_in_the_file_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    tensors = {name: rng.normal(size=300_000).astype(np.float32) for name in "abc"}
    first = write(tmp_path / "1", tensors)
    position, header = 0, {}
    for name in "cab":
        header[name] = {"dtype": "F32", "shape": [300_000], "data_offsets": [position, position + 1_200_000]}
        position += 1_200_000
    text = json.dumps(header).encode()  # of any length, so that nothing is aligned either
    (tmp_path / "2").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors[n].tobytes() for n in "cab"))
    second = TensorFile.open(tmp_path / "2")
    fold([first, second], [1, 5], RECIPE, tmp_path / "out")
    for name in "abc":
        assert TensorFile.open(tmp_path / "out").flat(name).tobytes() == tensors[name].tobytes()


def test_models_from_before_means_were_exact_fold_to_their_bytes(tmp_path: Path) -> None:
    """A file as it was written then: no arithmetic named, sums in order. Both must stay for its round to verify."""
    rng = np.random.default_rng(5)
    updates = [(rng.normal(size=4000) * 10.0 ** rng.integers(-9, 9, 4000)).astype(np.float32) for _ in range(3)]
    samples = [7, 11, 13]
    total = np.zeros(4000)
    for update, count in zip(updates, samples, strict=True):
        total += update.astype(np.float64) * count
    metadata = {
        "concilia.architecture": "resnet18",
        "concilia.round": "3",
        "concilia.strategy": '{"name":"fedprox","proximal_mu":0.01}',
    }
    then = (total / 31).astype(np.float32)
    entry = {"dtype": "F32", "shape": [4000], "data_offsets": [0, 16_000]}
    text = json.dumps({"__metadata__": metadata, "w": entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "then").write_bytes(len(text).to_bytes(8, "little") + text + then.tobytes())
    known = Recipe.of(TensorFile.open(tmp_path / "then"))
    files = [write(tmp_path / str(i), {"w": update}) for i, update in enumerate(updates)]
    digest = fold(files, samples, known, tmp_path / "again")
    assert digest == hashlib.sha256((tmp_path / "then").read_bytes()).hexdigest()
    now = Recipe(known.architecture, known.round, known.strategy)
    assert fold(files, samples, now, tmp_path / "now") != digest


def test_an_arithmetic_from_a_later_version_is_named(tmp_path: Path) -> None:
    model = {"w": np.ones(2, np.float32)}
    metadata = {**RECIPE.metadata(), "concilia.arithmetic": "exact-9"}
    (tmp_path / "m").write_bytes(safetensors.numpy.save(model, metadata))
    with pytest.raises(ValueError, match="does not know"):
        Recipe.of(TensorFile.open(tmp_path / "m"))


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(),
        Strategy(name=StrategyName.MEDIAN),
        Strategy(name=StrategyName.TRIMMED_MEAN),
        Strategy(name=StrategyName.TRIMMED_MEAN, trim=0.2),
    ],
)
def test_a_recipe_is_read_as_it_was_written(tmp_path: Path, strategy: Strategy) -> None:
    file = write(tmp_path / "1", {"w": np.ones(2, np.float32)})
    recipe = Recipe(Architecture.RESNET18, 1, strategy)
    fold([file], [1], recipe, tmp_path / "out")
    assert Recipe.of(TensorFile.open(tmp_path / "out")) == recipe


def test_pages_that_were_read_are_given_back(tmp_path: Path) -> None:
    """Of 12 files of 32 MB no more is resident than a few megabytes each brings at a time, and what blocks take."""
    rng = np.random.default_rng(6)
    for i in range(12):
        (tmp_path / str(i)).write_bytes(safetensors.numpy.save({"w": rng.normal(size=8_000_000).astype(np.float32)}))
    script = f"""
import sys
from pathlib import Path
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.windows import Stretch
from concilia_kit.tensorfile import TensorFile, TensorSpec
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Architecture
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
files = [TensorFile.open(Path({str(tmp_path)!r}) / str(i)) for i in range(12)]
before = peak()
fold(files, [100 + i for i in range(12)], Recipe(Architecture.RESNET18, 1, Strategy()), Path({str(tmp_path)!r}) / "out")
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12 * 4_500 + 25_000  # kB; the files have 375,000


def test_a_failed_fold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to fold"):
        fold([], [], RECIPE, tmp_path / "out")
    one = write(tmp_path / "1", {"w": np.ones(2, np.float32)})
    two = write(tmp_path / "2", {"v": np.ones(2, np.float32)})
    with pytest.raises(KeyError):
        fold([one, two], [1, 1], RECIPE, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]

"""Partial sums: whatever the groups, the same bytes as folding all updates at once; and what may not be half there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_aggregator import partials
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.partials import Member, Partial, TooMuchRest
from concilia_kit import encodings
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Architecture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RECIPE = Recipe(Architecture.RESNET18, 3, Strategy())
COUNT = 9


def update(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    wide = (rng.normal(size=(130, 70)) * 2.0 ** rng.integers(-70, 60, (130, 70))).astype(np.float32)
    return {
        "a.half": rng.normal(size=33).astype(np.float16),
        "b.wide": wide,  # sums that one float64 does not hold
        "c.large": rng.normal(size=40_000).astype(np.float32),
        "d.zero": np.full(5, -0.0, np.float32),
        "e.half": rng.normal(size=(3, 4)).astype(np.float16),
        "f.empty": np.empty((0, 2), np.float32),
        "n.count": np.array(seed, np.int64),
        "n.flags": rng.integers(0, 2, 4).astype(bool),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[TensorFile]:
    folder = tmp_path_factory.mktemp("updates")
    made = []
    for i in range(COUNT):
        (folder / str(i)).write_bytes(safetensors.numpy.save(update(i)))
        made.append(TensorFile.open(folder / str(i)))
    return made


SAMPLES = [3, 1_000, 70_001, 12, 12, 12, 999, 2**29 - 1, 5]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(st.integers(0, 3), min_size=COUNT, max_size=COUNT), direct=st.booleans(), data=st.data())
def test_whatever_the_groups_the_bytes_are_the_same(
    files: list[TensorFile], tmp_path: Path, groups: list[int], direct: bool, data: st.DataObject
) -> None:
    whole = fold(files, SAMPLES, RECIPE, tmp_path / "whole")
    summed = [which for which in sorted(set(groups)) if which or not direct]  # group 0 may be folded itself
    found = []
    for which in data.draw(st.permutations(summed)):
        members = [i for i in range(COUNT) if groups[i] == which]
        partials.make([files[i] for i in members], [SAMPLES[i] for i in members], files[0], tmp_path, f"{which}")
        found.append(Partial.open(tmp_path, f"{which}"))
    left = [i for i in range(COUNT) if groups[i] not in summed]
    again = fold([files[i] for i in left], [SAMPLES[i] for i in left], RECIPE, tmp_path / "again", partials=found)
    assert again == whole


@pytest.mark.parametrize("encoding", ["float16", "int8+zstd", "topk:0.05"])
def test_encoded_updates_are_summed_as_what_they_stand_for(tmp_path: Path, encoding: str) -> None:
    given = [{name: value for name, value in update(i).items() if value.dtype == np.float32} for i in range(COUNT)]
    (tmp_path / "base").write_bytes(safetensors.numpy.save(given[0]))
    base = TensorFile.open(tmp_path / "base")
    sent = []
    for i, tensors in enumerate(given[1:]):
        encodings.encode(tmp_path / str(i), Encoding.parse(encoding), tensors, base)
        sent.append(TensorFile.open(tmp_path / str(i)))
    samples = SAMPLES[: len(sent)]
    whole = fold(sent, samples, RECIPE, tmp_path / "whole", base)
    partials.make(sent[2:6], samples[2:6], base, tmp_path, "some")
    rest, left = [*sent[:2], *sent[6:]], [*samples[:2], *samples[6:]]
    again = fold(rest, left, RECIPE, tmp_path / "again", base, partials=[Partial.open(tmp_path, "some")])
    assert again == whole
    plain = fold(
        [TensorFile.open(_plain(tmp_path / f"plain{i}", each, base)) for i, each in enumerate(sent)],
        *(samples, RECIPE, tmp_path / "decoded"),
    )
    assert plain == whole


def _plain(path: Path, update: TensorFile, base: TensorFile) -> Path:
    read = encodings.reader(update, base)
    tensors = {name: read.block(name, 0, spec.size).reshape(spec.shape) for name, spec in read.tensors.items()}
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def test_a_name_says_what_went_in_and_not_in_which_order() -> None:
    one, two = Member("a" * 64, 3), Member("b" * 64, 4)
    names = {
        partials.key("0" * 64, [one, two]),
        partials.key("1" * 64, [one, two]),
        partials.key("0" * 64, [one]),
        partials.key("0" * 64, [one, Member("b" * 64, 5)]),
    }
    assert len(names) == 4
    assert partials.key("0" * 64, [two, one]) in names


def test_it_is_there_whole_or_not_at_all(
    files: list[TensorFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "MOST_REST", 10)
    with pytest.raises(TooMuchRest):
        partials.make(files, SAMPLES, files[0], tmp_path, "much")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    partials.make(files, SAMPLES, files[0], tmp_path, "fine")
    assert partials.is_there(tmp_path, "fine")
    partials.remove(tmp_path, "fine")
    partials.remove(tmp_path, "fine")
    assert not list(tmp_path.iterdir())


def test_no_sums_are_kept_of_double_precision(tmp_path: Path) -> None:
    (tmp_path / "double").write_bytes(safetensors.numpy.save({"w": np.ones(3)}))
    file = TensorFile.open(tmp_path / "double")
    with pytest.raises(ValueError, match="no exact sums"):
        partials.make([file], [1], file, tmp_path, "double")


def test_a_foreign_file_is_no_partial_sum(files: list[TensorFile], tmp_path: Path) -> None:
    for end in ("sums", "rest"):
        (tmp_path / f"x.{end}").write_bytes(files[0].path.read_bytes())
    with pytest.raises(MalformedFile):
        Partial.open(tmp_path, "x")


def test_there_are_no_parts_of_a_median(files: list[TensorFile], tmp_path: Path) -> None:
    partials.make(files[:2], SAMPLES[:2], files[0], tmp_path, "two")
    recipe = Recipe(Architecture.RESNET18, 1, Strategy(name=StrategyName.MEDIAN))
    with pytest.raises(ValueError, match="parts"):
        fold(files[2:], SAMPLES[2:], recipe, tmp_path / "out", partials=[Partial.open(tmp_path, "two")])
    assert not (tmp_path / "out").exists()

"""Masked updates folded by strategies, as the means of their groups would be; the same bytes whoever does it again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from concilia_aggregator.facts import RoundFacts
from concilia_aggregator.folding import MASKING, Recipe, fold, remember
from concilia_kit import tensorfile
from concilia_kit.masking import MaskingError
from concilia_kit.sealing import Keyring, StoreKey
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.masking import SecureAggregation, Unmasking
from concilia_kit.wire.strategy import MIXABLE, OF_SUMS, Strategy, StrategyName
from concilia_kit.wire.training import Architecture

from tests.privacy.cohort import Cohort, Tensors, same


def floats() -> Tensors:
    """What strategies that remember can step: float32, and a counter."""
    rng = np.random.default_rng(3)
    return {"a": rng.normal(size=(9, 7)).astype(np.float32), "n": np.array(4), "z": rng.normal(size=5).astype("f4")}


def unmasked(folder: Path, count: int = 4, group: int | None = None, lost: int = 1) -> tuple[Cohort, Unmasking]:
    folder.mkdir(exist_ok=True)
    cohort = Cohort.of(count, folder, SecureAggregation(group=group), floats())
    cohort.keys()
    cohort.shares()
    cohort.inputs(gone=cohort.hospitals(range(lost)))
    return cohort, cohort.unmasking(cohort.reveals(cohort.consents()))


def updates(cohort: Cohort, unmasking: Unmasking) -> tuple[list[TensorFile], list[int]]:
    return [cohort.given[each] for each in unmasking.survivors], [
        cohort.by_name(each).samples for each in unmasking.survivors
    ]


def recipe(name: StrategyName, unmasking: Unmasking | None) -> Recipe:
    return Recipe(Architecture.RESNET18, 1, Strategy(name=name), masking=unmasking)


def folded(cohort: Cohort, how: Recipe, unmasking: Unmasking, target: str, threads: int | None = None) -> TensorFile:
    files, samples = updates(cohort, unmasking)
    fold(files, samples, how, cohort.folder / target, cohort.base, threads=threads)
    return TensorFile.open(cohort.folder / target)


@pytest.mark.parametrize("name", [StrategyName.FEDAVG, StrategyName.FEDPROX])
def test_averages_are_the_mean(tmp_path: Path, name: StrategyName) -> None:
    cohort, unmasking = unmasked(tmp_path)
    found = folded(cohort, recipe(name, unmasking), unmasking, "model")
    assert same(found, cohort.expected(unmasking.survivors))


@pytest.mark.parametrize("name", sorted(OF_SUMS))
def test_strategies_of_sums_go_by_the_mean(tmp_path: Path, name: StrategyName) -> None:
    """As they would by one hospital's update that is that mean; what is remembered too."""
    cohort, unmasking = unmasked(tmp_path)
    files, samples = updates(cohort, unmasking)
    tensorfile.write(tmp_path / "mean", cohort.expected(unmasking.survivors))
    mean = TensorFile.open(tmp_path / "mean")
    masked, plain = recipe(name, unmasking), recipe(name, None)
    found = folded(cohort, masked, unmasking, "model")
    fold([mean], [sum(samples)], plain, tmp_path / "plain", cohort.base)
    plainly = TensorFile.open(tmp_path / "plain")
    assert same(found, {each: plainly.tensor(each) for each in plainly})
    if name not in {StrategyName.FEDAVG, StrategyName.FEDPROX}:
        kept = remember(files, samples, masked, tmp_path / "kept", cohort.base)
        assert kept == remember([mean], [sum(samples)], plain, tmp_path / "kept-plainly", cohort.base)


@pytest.mark.parametrize("name", sorted(MIXABLE))
def test_robust_strategies_go_by_groups(tmp_path: Path, name: StrategyName) -> None:
    cohort, unmasking = unmasked(tmp_path, 24, group=4, lost=0)
    means, samples = cohort.means(unmasking)
    assert len(means) == 6
    found = folded(cohort, recipe(name, unmasking), unmasking, "model")
    fold(means, samples, recipe(name, None), tmp_path / "plain", cohort.base)
    plainly = TensorFile.open(tmp_path / "plain")
    assert same(found, {each: plainly.tensor(each) for each in plainly})


def test_the_files_recipe_makes_the_same_bytes(tmp_path: Path) -> None:
    cohort, unmasking = unmasked(tmp_path)
    model = folded(cohort, recipe(StrategyName.FEDAVG, unmasking), unmasking, "model")
    again = Recipe.of(model)
    assert again.masking == unmasking
    for threads in (1, 3):
        folded(cohort, again, unmasking, "again", threads)
        assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    assert not list(tmp_path.glob("model.*"))
    assert not list(tmp_path.glob("again.*"))


def test_a_recipe_without_masking_says_nothing_of_it(tmp_path: Path) -> None:
    assert MASKING not in recipe(StrategyName.FEDAVG, None).metadata()
    cohort, _ = unmasked(tmp_path)
    fold([cohort.base], [1], recipe(StrategyName.FEDAVG, None), tmp_path / "model")
    assert Recipe.of(TensorFile.open(tmp_path / "model")).masking is None


def test_a_metadata_that_is_no_unmasking(tmp_path: Path) -> None:
    metadata = {**recipe(StrategyName.FEDAVG, None).metadata(), MASKING: '{"roster": 1}'}
    tensorfile.write(tmp_path / "model", floats(), metadata)
    with pytest.raises(ValueError, match="Unmasking"):
        Recipe.of(TensorFile.open(tmp_path / "model"))


def test_nothing_is_left_where_it_does_not_hold(tmp_path: Path) -> None:
    cohort, unmasking = unmasked(tmp_path)
    wrong = unmasking.model_copy(update={"seeds": dict.fromkeys(unmasking.seeds, "00" * 16)})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MaskingError, match="commitment"):
        folded(cohort, recipe(StrategyName.FEDAVG, wrong), unmasking, "model")
    assert sorted(tmp_path.iterdir()) == before


def test_what_does_not_go_with_masking(tmp_path: Path) -> None:
    cohort, unmasking = unmasked(tmp_path)
    files, samples = updates(cohort, unmasking)
    how = recipe(StrategyName.FEDAVG, unmasking)
    facts = RoundFacts(learning_rate=0.1, hospitals=3, reach=(1.0,) * 3, first_loss=(None,) * 3)
    for wrong, base in (
        (how, None),
        (replace(how, facts=facts), cohort.base),
        (replace(how, strategy=Strategy(name=StrategyName.FEDBUFF)), cohort.base),
    ):
        with pytest.raises(ValueError, match="nothing but their sums"):
            fold(files, samples, wrong, tmp_path / "model", base)


def test_sealed_stores(tmp_path: Path) -> None:
    """Bytes are the same whether files are sealed, and no mean lies there unsealed meanwhile."""
    cohort, unmasking = unmasked(tmp_path)
    files, samples = updates(cohort, unmasking)
    how = recipe(StrategyName.MEDIAN, unmasking)
    plain = fold(files, samples, how, tmp_path / "plain", cohort.base)
    keys = Keyring(StoreKey.new())
    for at, file in enumerate([*files, cohort.base]):
        tensors = {name: file.tensor(name) for name in file}
        tensorfile.write(tmp_path / f"sealed-{at}", tensors, file.header.metadata, keys=keys)
    *sealed, base = (TensorFile.open(tmp_path / f"sealed-{at}", keys) for at in range(len(files) + 1))
    assert fold(sealed, samples, how, tmp_path / "model", base, keys=keys) == plain


MEASURED = """
import re, sys
from pathlib import Path
from concilia_aggregator.folding import Recipe, fold
from concilia_kit.masking import Mask
from concilia_kit.tensorfile import TensorFile
def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
folder, count = Path(sys.argv[1]), int(sys.argv[2])
how = Recipe.of(TensorFile.open(folder / "recipe"))
names = how.masking.survivors[:count]
base = TensorFile.open(folder / "base")
before = kilobytes("VmRSS")
fold([TensorFile.open(folder / each) for each in names], [40 for _ in names], how, folder / "model", base, threads=2)
print(kilobytes("VmHWM") - before)
"""


def grown(folder: Path, count: int) -> int:
    """By how many KB a process of its own grows at most while it folds so many updates of 16 MB."""
    size = 4 << 20
    start: Tensors = {"w": np.zeros(size, np.float32)}
    folder.mkdir()
    cohort = Cohort.of(count, folder, start=start)
    for each in cohort.members:
        each.trained, each.samples = start, 40
    cohort.keys()
    cohort.shares()
    cohort.inputs()
    unmasking = cohort.unmasking(cohort.reveals(cohort.consents()))
    tensorfile.write(folder / "recipe", {"w": np.zeros(1, "f4")}, recipe(StrategyName.FEDAVG, unmasking).metadata())
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder), str(count)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_memory_does_not_grow_with_hospitals(tmp_path: Path) -> None:
    """Mapped pages count until they are given back: 2 MB of each file, and no more."""
    few, many = grown(tmp_path / "few", 3), grown(tmp_path / "many", 9)
    assert few < 48 * 1024
    assert many - few < 6 * 5 * 1024, (few, many)

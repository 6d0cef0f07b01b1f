"""Sealed files are folded, screened and added up as those that lie as they are: to the bit, and in bounded memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import partials, summing
from concilia_aggregator.artifacts import ArtifactNotFound, MountedArtifacts
from concilia_aggregator.folder import Folder
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.partials import Member, Partial
from concilia_aggregator.screening import Base, Limits, screen
from concilia_aggregator.summing import Summing, SumTask
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import Verifier
from concilia_kit import encodings, tensorfile
from concilia_kit.problems import Problem
from concilia_kit.sealing import MAGIC, NO_KEYS, Keyring, SealingKeyUnknown, StoreKey
from concilia_kit.storedfile import digest_of
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import RoundOpening
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Architecture

KEYS = Keyring(StoreKey.new())
LIMITS = Limits(10**6, 1e9)
SAMPLES = [10, 333, 21, 1, 77, 4]
SHAPES = {"conv.weight": (64, 33, 3, 3), "fc.weight": (7, 5001), "fc.bias": (7,), "bn.running_mean": (64,)}


def tensors(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {**made, "half": rng.normal(size=999).astype(np.float16), "n": np.array(seed, np.int64)}


def both(folder: Path, name: str, content: Path) -> tuple[TensorFile, TensorFile]:
    """One file as it lies, and sealed."""
    seal = KEYS.seal()
    assert seal is not None
    (folder / f"{name}.sealed").write_bytes(seal.header + seal.at(0)(content.read_bytes()))
    return TensorFile.open(content, KEYS), TensorFile.open(folder / f"{name}.sealed", KEYS)


@pytest.fixture(scope="module", params=["none", "float16", "int8", "topk:0.05", "int8+zstd", "topk:0.005+zstd"])
def round_(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A base and its updates in one encoding, each as it lies and sealed."""
    folder = tmp_path_factory.mktemp("round")
    tensorfile.write(folder / "base", tensors(0))
    base = both(folder, "base", folder / "base")
    updates = []
    for number in range(1, len(SAMPLES) + 1):
        path = folder / f"update-{number}"
        encodings.encode(path, Encoding.parse(request.param), tensors(number), base[0])
        updates.append(both(folder, path.name, path))
    return base, updates


@pytest.mark.parametrize("name", [StrategyName.FEDAVG, StrategyName.MEDIAN, StrategyName.TRIMMED_MEAN])
@pytest.mark.parametrize("threads", [1, 3])
def test_sealed_updates_fold_to_the_same_bytes(tmp_path: Path, round_: Any, name: StrategyName, threads: int) -> None:
    (base, sealed_base), updates = round_
    recipe = Recipe(Architecture.RESNET18, 1, Strategy(name=name))
    plain = fold([each for each, _ in updates], SAMPLES, recipe, tmp_path / "plain", base, threads=threads)
    for number, chosen in enumerate(
        ([sealed for _, sealed in updates], [pair[at % 2] for at, pair in enumerate(updates)])
    ):
        target = tmp_path / f"sealed-{number}"
        assert fold(chosen, SAMPLES, recipe, target, sealed_base, threads=threads, keys=KEYS) == plain
        assert target.read_bytes().startswith(MAGIC)
        assert digest_of(target, KEYS) == plain
    assert hashlib.sha256((tmp_path / "plain").read_bytes()).hexdigest() == plain


def test_sealed_updates_are_screened_alike(round_: Any) -> None:
    (base, sealed_base), updates = round_
    measured, theirs = Base.of(base), Base.of(sealed_base)
    assert measured.norm == theirs.norm
    for plain, sealed in updates:
        digest = hashlib.sha256(plain.path.read_bytes()).hexdigest()
        for limits, asked in ((LIMITS, digest), (LIMITS, "0" * 64), (Limits(10**6, 1e-3), digest)):
            found = screen(plain, measured, 10, None, limits, asked)
            assert screen(sealed, theirs, 10, None, limits, asked) is found
        assert screen(sealed, theirs, 10, None, LIMITS, digest) is None


def test_sums_made_ahead_are_sealed_and_combine_to_the_same_bytes(tmp_path: Path, round_: Any) -> None:
    (base, sealed_base), updates = round_
    recipe = Recipe(Architecture.RESNET18, 1, Strategy())
    whole = fold([each for each, _ in updates], SAMPLES, recipe, tmp_path / "whole", base)
    sealed = [each for _, each in updates]
    partials.make(sealed[:3], SAMPLES[:3], sealed_base, tmp_path / "sums", "some", KEYS)
    for end in ("sums", "rest"):
        assert (tmp_path / "sums" / f"some.{end}").read_bytes().startswith(MAGIC)
    with pytest.raises(SealingKeyUnknown):
        Partial.open(tmp_path / "sums", "some")
    found = [Partial.open(tmp_path / "sums", "some", KEYS)]
    again = fold(sealed[3:], SAMPLES[3:], recipe, tmp_path / "again", sealed_base, partials=found, keys=KEYS)
    assert again == whole


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[TensorFile]:
    folder = tmp_path_factory.mktemp("large")
    big = {"w": np.ones(8_000_000, np.float32)}  # 32 MB a file
    for number in range(6):
        tensorfile.write(folder / str(number), big, lasting=False, keys=KEYS)
    return [TensorFile.open(folder / str(number), KEYS) for number in range(6)]


@pytest.mark.parametrize("count", [2, 6])
def test_memory_does_not_grow_with_sealed_updates(tmp_path: Path, large: list[TensorFile], count: int) -> None:
    tracemalloc.start()
    fold(large[:count], [1] * count, Recipe(Architecture.RESNET18, 3, Strategy()), tmp_path / "out", keys=KEYS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15e6  # a window of each; less than half of one file


@pytest.mark.parametrize("encoding", ["int8", "int8+zstd", "topk:0.5+zstd"])
def test_memory_does_not_grow_with_sealed_and_encoded_updates(
    tmp_path: Path, large: list[TensorFile], encoding: str
) -> None:
    base = large[0]
    noise = np.random.default_rng(1).normal(size=8_000_000).astype(np.float32)
    encodings.encode(tmp_path / "update", Encoding.parse(encoding), {"w": base.tensor("w") + noise}, base)
    _, update = both(tmp_path, "update", tmp_path / "update")
    tracemalloc.start()
    found = fold([update] * 3, [1] * 3, Recipe(Architecture.RESNET18, 3, Strategy()), tmp_path / "out", base, keys=KEYS)
    assert screen(update, Base.of(base), 1, None, LIMITS) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 64
    assert peak < 15e6  # neither the base, of 32 MB, nor an update is in memory as a whole


def test_screening_a_sealed_update_takes_little_memory(large: list[TensorFile]) -> None:
    base = Base.of(large[0])
    tracemalloc.start()
    assert screen(large[1], base, 1, None, LIMITS, digest_of(large[1].path, KEYS)) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_a_store_whose_key_is_not_there_costs_no_hospital_its_update(
    artifacts: Any, ledger: Any, tmp_path: Path
) -> None:
    artifacts.keys = KEYS
    initial = artifacts.add(tensors(0))
    ledger.open(RoundOpening(job="a" * 64, round=1, base=initial, deadline=2**40, quorum=1))
    ledger.submit("a" * 64, 1, f"0x{1:040x}", artifacts.add(tensors(1)), 10)
    folder = Folder(artifacts, ledger, tmp_path / "work", Limits(1000, 1e9))
    for keys in (NO_KEYS, Keyring(StoreKey.new())):
        artifacts.keys = keys
        with pytest.raises(SealingKeyUnknown, match=KEYS.current.id.hex()):  # type: ignore[union-attr]
            folder.screen(ledger.round("a" * 64, 1), {})
    assert ledger.round("a" * 64, 1).rejected == 0
    artifacts.keys = KEYS
    folder.screen(ledger.round("a" * 64, 1), {})
    assert ledger.round("a" * 64, 1).rejected == 0
    folder.fold(ledger.round("a" * 64, 1), JobSpec(name="job", initial=initial))


def test_a_sum_under_a_key_that_is_not_there_is_as_if_it_were_not(
    tmp_path: Path, round_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mounted(MountedArtifacts):
        def __init__(self, keys: Keyring) -> None:
            super().__init__(None, tmp_path / "store", keys)  # type: ignore[arg-type]

        def add(self, file: TensorFile) -> str:
            digest = digest_of(file.path, KEYS)
            place = tmp_path / "store" / digest[:2] / digest
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.path.read_bytes())
            return digest

    (_, base), updates = round_
    artifacts = Mounted(KEYS)
    members = [Member(artifacts.add(sealed), 5) for _, sealed in updates]
    task = SumTask(base=artifacts.add(base), updates=tuple(members))
    assert not summing.make(task, Mounted(NO_KEYS), tmp_path / "sums")
    with pytest.raises(ArtifactNotFound):
        artifacts.fetch("0" * 64)
    assert summing.make(task, artifacts, tmp_path / "sums")
    name = partials.key(task.base, members)
    assert (tmp_path / "sums" / f"{name}.sums").read_bytes().startswith(MAGIC)
    for keys, found in ((KEYS, 1), (NO_KEYS, 0)):
        told = Summing(None, tmp_path / "sums", keys)
        monkeypatch.setattr(summing, "_groups", lambda _recorded: [members])
        assert len(told.ahead(SimpleNamespace(base=task.base)).sums) == found  # type: ignore[arg-type]


def test_a_folder_of_sealed_files_says_what_to_do(tmp_path: Path) -> None:
    digest = tensorfile.write(tmp_path / "file", tensors(1), keys=KEYS)
    (tmp_path / digest[:2]).mkdir()
    (tmp_path / "file").rename(tmp_path / digest[:2] / digest)
    with pytest.raises(Problem, match="the model service, which has it, gives the files") as caught:
        FolderSource(tmp_path).fetch(digest, tmp_path)
    assert caught.value.problem_code == "sealing_key_unknown"
    path = FolderSource(tmp_path, KEYS).fetch(digest, tmp_path)
    with pytest.raises(FileNotFoundError):
        FolderSource(tmp_path, KEYS).fetch("0" * 64, tmp_path)
    verifier = Verifier(None, FolderSource(tmp_path, KEYS), lambda *_: None, keys=KEYS)  # type: ignore[arg-type]
    assert verifier._file(1, None, digest, tmp_path) == path
    assert verifier._findings == []

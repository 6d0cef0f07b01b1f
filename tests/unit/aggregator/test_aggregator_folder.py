"""The folder's memory: nothing is read twice, and nothing that changed meanwhile is folded unnoticed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_aggregator import facts
from concilia_aggregator import folder as module
from concilia_aggregator.errors import UpdateChanged
from concilia_aggregator.folder import Folder
from concilia_aggregator.folding import Recipe
from concilia_aggregator.screening import Limits
from concilia_kit.problems import Unavailable
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.chain import LedgerRound, Reason, RoundOpening
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.strategy import Strategy, StrategyName

from .conftest import METRICS

JOB = "a" * 64


def model(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(30, 40)).astype(np.float32), "n": np.array(seed, np.int64)}


class World:
    """A round with three updates, and how often screening read one."""

    def __init__(self, artifacts: Any, ledger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.artifacts, self.ledger = artifacts, ledger
        self.folder = Folder(artifacts, ledger, tmp_path / "work", Limits(1000, 10.0))
        self.spec = JobSpec(name="job", initial=artifacts.add(model(0)))
        ledger.open(RoundOpening(job=JOB, round=1, base=self.spec.initial, deadline=2**40, quorum=1))
        self.read: list[str] = []
        real = module.screen

        def counted(update: TensorFile, *rest: Any) -> Reason | None:
            self.read.append(update.path.name)
            return real(update, *rest)

        monkeypatch.setattr(module, "screen", counted)

    def submit(self, number: int, digest: str, samples: int = 10) -> None:
        self.ledger.submit(JOB, 1, f"0x{number:040x}", digest, samples)

    def screen(self, registered: dict[str, int] | None = None) -> LedgerRound:
        recorded = self.folder.screen(self.ledger.round(JOB, 1), registered or {})
        assert recorded.rejected == self.ledger.round(JOB, 1).rejected
        return recorded


@pytest.fixture
def world(artifacts: Any, ledger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(artifacts, ledger, tmp_path, monkeypatch)
    for number in (1, 2, 3):
        made.submit(number, artifacts.add(model(number)))
    return made


def test_what_was_screened_is_not_read_again(world: World) -> None:
    world.screen()
    assert len(world.read) == 3
    world.screen()
    assert len(world.read) == 3
    world.submit(4, late := world.artifacts.add(model(4)))
    world.screen()
    assert world.read[3:] == [late]


def test_other_registered_samples_are_judged_anew(world: World) -> None:
    hospital = f"0x{2:040x}"
    assert world.screen({hospital: 10}).rejected == 0
    recorded = world.screen({hospital: 9})
    assert [item.reason for item in recorded.updates] == [None, Reason.SAMPLE_COUNT, None]


def test_who_is_weighed_by_images_of_classes_tells_them_and_no_more_than_are_registered(world: World) -> None:
    """One says nothing, one tells other classes apart, one has none, one more than it registered, one says it right."""
    told = [None, (1, 2), (0, 0, 0), (5, 6, 0), (4, 6, 0)]
    world.ledger.open(RoundOpening(job="b" * 64, round=1, base=world.spec.initial, deadline=2**40, quorum=1))
    for number, counts in enumerate(told, 11):
        metrics = METRICS.model_copy(update={"class_counts": counts})
        digest = world.artifacts.add(model(number))
        world.ledger.submit("b" * 64, 1, f"0x{number:040x}", digest, 10, metrics)
    recorded = world.ledger.round("b" * 64, 1)
    registered = {item.update.hospital: 10 for item in recorded.updates}
    recorded = world.folder.screen(recorded, registered, classes=3)
    assert [item.reason for item in recorded.updates] == [Reason.SAMPLE_COUNT] * 4 + [None]
    balanced = world.spec.model_copy(update={"strategy": Strategy(name=StrategyName.CLASS_BALANCED)})
    assert (facts.classes_told(world.spec), facts.classes_told(balanced)) == (None, 7)


def test_a_rejection_is_sent_once_while_the_reading_is_behind(world: World) -> None:
    bad = model(5)
    bad["w"][3, 3] = np.nan
    world.submit(5, world.artifacts.add(bad))
    behind = world.ledger.round(JOB, 1)
    for _ in range(3):
        recorded = world.folder.screen(behind, {})
        assert recorded.updates[3].reason is Reason.NON_FINITE
        assert recorded.rejected == 1
    assert world.ledger.round(JOB, 1).rejected == 1


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(safetensors.numpy.save(model(99)))
    other.replace(path)


@pytest.mark.parametrize("change", [spoil, replace])
def test_a_file_that_changed_after_screening_is_put_aside_and_waited_for(
    world: World, change: Callable[[Path], None]
) -> None:
    recorded = world.screen()
    hospital, victim = recorded.updates[1].update.hospital, recorded.updates[1].update.digest
    path = world.artifacts.directory / victim
    content = path.read_bytes()
    change(path)
    with pytest.raises(UpdateChanged):
        world.folder.fold(recorded, world.spec)
    for _ in range(2):
        again = world.screen()
        assert [item.reason for item in again.updates] == [None, None, None]
        assert world.folder.lost == {hospital}
        assert world.artifacts.is_put_aside(victim)
    path.write_bytes(content)
    world.artifacts.put_aside.clear()
    again = world.screen()
    assert not world.folder.lost
    assert [item.reason for item in again.updates] == [None, None, None]
    assert world.artifacts.exists(world.folder.fold(again, world.spec))


def test_a_file_that_is_brought_again_while_the_store_is_asked_is_no_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = world.screen()
    victim = recorded.updates[1].update.digest
    path = world.artifacts.directory / victim
    content = path.read_bytes()
    spoil(path)
    with pytest.raises(UpdateChanged):
        world.folder.fold(recorded, world.spec)
    assert not world.artifacts.is_intact(victim)
    asked: list[str] = []

    def is_put_aside(digest: str) -> bool:
        asked.append(digest)
        world.artifacts.put(victim, tmp)
        return False  # it is there again

    tmp = path.with_suffix(".brought")
    tmp.write_bytes(content)
    monkeypatch.setattr(world.artifacts, "is_put_aside", is_put_aside)
    again = world.screen()
    assert asked == [victim]
    assert [item.reason for item in again.updates] == [None, None, None]
    assert not world.folder.lost
    assert world.artifacts.exists(world.folder.fold(again, world.spec))


def test_a_file_that_never_came_is_missing_for_as_long_as_it_does_not_come(world: World) -> None:
    content = safetensors.numpy.save(model(7))
    digest = hashlib.sha256(content).hexdigest()
    world.submit(4, digest)
    assert world.screen().updates[3].reason is Reason.ARTIFACT_MISSING
    (world.artifacts.directory / digest).write_bytes(content)
    assert all(each.digest != digest for each in world.folder._verdicts)


def test_a_file_that_was_lost_and_not_brought_again_by_the_deadline_is_left_out(world: World) -> None:
    recorded = world.screen()
    spoil(world.artifacts.directory / recorded.updates[1].update.digest)
    with pytest.raises(UpdateChanged):
        world.folder.fold(recorded, world.spec)
    world.screen()
    world.ledger.rounds[JOB, 1] = world.ledger.rounds[JOB, 1].model_copy(update={"deadline": 1})
    over = world.screen()
    assert [item.reason for item in over.updates] == [None, Reason.ARTIFACT_MISSING, None]
    assert not world.folder.lost


def test_a_file_that_was_never_there_is_not_waited_for(world: World) -> None:
    recorded = world.screen()
    (world.artifacts.directory / recorded.updates[1].update.digest).unlink()
    with pytest.raises(UpdateChanged):
        world.folder.fold(recorded, world.spec)
    again = world.screen()
    assert [item.reason for item in again.updates] == [None, Reason.ARTIFACT_MISSING, None]
    assert world.artifacts.exists(world.folder.fold(again, world.spec))


def test_other_bytes_than_the_store_vouches_for_are_nobodys_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(world.artifacts.directory / world.ledger.round(JOB, 1).updates[0].update.digest)
    monkeypatch.setattr(world.artifacts, "is_intact", lambda _digest: True)
    with pytest.raises(Unavailable):
        world.screen()
    assert world.ledger.round(JOB, 1).rejected == 0


def test_a_global_model_that_was_lost_is_made_again_to_the_same_bytes(world: World) -> None:
    recorded = world.screen()
    digest = world.folder.fold(recorded, world.spec)
    content = world.artifacts.content(digest)
    spoil(world.artifacts.directory / digest)
    assert not world.artifacts.is_intact(digest)
    other = Folder(world.artifacts, world.ledger, world.artifacts.directory.parent / "other", Limits(1000, 10.0))
    assert other.fold_again(recorded, world.spec) == digest
    assert world.artifacts.content(digest) == content
    spoil(world.artifacts.directory / recorded.updates[2].update.digest)
    with pytest.raises(UpdateChanged):
        other.fold_again(recorded, world.spec)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_model_is_over_its_bases_trunk_whatever_updates_say(world: World, strategy: str) -> None:
    said = Adapter("ab" * 32, "lora:8")
    base = world.artifacts.add(model(0), {"origin": "here", **said.metadata()})
    world.ledger.open(RoundOpening(job="b" * 64, round=1, base=base, deadline=2**40, quorum=1))
    for number in (1, 2):
        digest = world.artifacts.add(model(number), Adapter("cd" * 32, "norms").metadata())
        world.ledger.submit("b" * 64, 1, f"0x{number:040x}", digest, 10)
    recorded = world.folder.screen(world.ledger.round("b" * 64, 1), {})
    assert recorded.rejected == 0
    spec = world.spec.model_copy(update={"initial": base, "strategy": Strategy(name=strategy)})
    made = TensorFile.open(world.artifacts.fetch(world.folder.fold(recorded, spec)), world.artifacts.keys)
    assert Adapter.of(made.header.metadata) == said == Recipe.of(made).adapter
    assert "origin" not in made.header.metadata
    digest = world.folder.fold(world.screen(), world.spec)
    plain = TensorFile.open(world.artifacts.fetch(digest), world.artifacts.keys)
    assert Recipe.of(plain).adapter is None


def test_a_file_that_changed_while_it_was_folded_is_not_published(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = world.screen()
    victim = world.artifacts.directory / recorded.updates[1].update.digest
    real = module.fold

    def meanwhile(*given: Any, **named: Any) -> str:
        digest = real(*given, **named)
        os.utime(victim)
        return digest

    monkeypatch.setattr(module, "fold", meanwhile)
    before = set(world.artifacts.directory.iterdir())
    with pytest.raises(UpdateChanged):
        world.folder.fold(recorded, world.spec)
    assert set(world.artifacts.directory.iterdir()) == before


def test_a_file_that_is_no_tensor_file_is_named_by_its_bytes_first(world: World) -> None:
    junk = b"\xff" * 100
    digest = hashlib.sha256(junk).hexdigest()
    (world.artifacts.directory / digest).write_bytes(junk)
    world.submit(4, digest)
    (world.artifacts.directory / ("b" * 64)).write_bytes(junk)
    world.submit(5, "b" * 64)
    world.submit(6, "c" * 64)
    reasons = [item.reason for item in world.screen().updates]
    assert reasons[3:] == [Reason.MALFORMED_FILE, None, Reason.ARTIFACT_MISSING]
    assert world.folder.lost == {f"0x{5:040x}"}

"""The key of a round's noise, in whole jobs against working doubles: made before anything is folded with it, found
again after a crash, another for other updates, and never another for a model that is closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import noising
from concilia_aggregator.errors import NoiseKeyLost
from concilia_aggregator.folding import Recipe
from concilia_aggregator.store import state_of
from concilia_kit import gaussians
from concilia_kit.problems import Unavailable
from concilia_kit.storedfile import StoredFile
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import Phase

from tests.unit.aggregator.conftest import FolderArtifacts, MemoryLedger, address, artifacts, ledger, model
from tests.unit.aggregator.test_aggregator_service import HOSPITALS, World, near

__all__ = ["artifacts", "ledger"]  # fixtures

RADIUS, NOISE = 0.5, 1.0
NOISED = {"name": "dp_fedavg", "radius": RADIUS, "noise": NOISE}
UPDATES = {who: near(at + 1) for at, who in enumerate(HOSPITALS)}


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    return World(tmp_path, ledger, artifacts)


def begun(world: World, **changes: Any) -> str:
    job = world.create(strategy=NOISED, **changes)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    return job


def opened(world: World, digest: str) -> TensorFile:
    return TensorFile.open(world.artifacts.fetch(digest), world.artifacts.keys)


def noise_of(world: World, job: str, round_: int) -> str:
    digest = world.ledger.rounds[job, round_].global_digest
    assert digest is not None
    found = Recipe.of(opened(world, digest)).noise
    assert found is not None
    return found


def keys(world: World) -> set[str]:
    """Digests of all keys in the store."""
    found = set()
    for path in world.artifacts.directory.iterdir():
        file = TensorFile.open(path, world.artifacts.keys)
        if "key" in file.header.tensors:
            found.add(path.name)
    return found


def test_a_job_runs_to_its_end_with_a_key_a_round_that_its_models_name(world: World) -> None:
    job = begun(world)
    for round_ in (1, 2):
        base = opened(world, state_of(world.store.job(job)).head)
        start = np.array(base.tensor("layer.bias"), np.float64)
        world.submit(job, round_, {who: near(at + round_) for at, who in enumerate(HOSPITALS)})
        after = opened(world, world.ledger.rounds[job, round_].global_digest or "")
        key = noising.read_key(opened(world, noise_of(world, job, round_)))
        numbers = gaussians.keyed(key, 0, 7)  # the first tensor by name, of which updates change nothing in round 1
        if round_ == 1:
            told = (after.tensor("layer.bias") - start) / (NOISE * RADIUS / 3)
            np.testing.assert_allclose(told, numbers, atol=1e-3)
        assert after.tensor("norm.num_batches_tracked") == 0
        world.evaluate(job, round_)
    assert world.phase(job) is Phase.FINISHED
    assert keys(world) == {noise_of(world, job, 1), noise_of(world, job, 2)}
    assert len(keys(world)) == 2


def test_a_key_is_sealed_where_files_are(world: World) -> None:
    job = begun(world)
    world.submit(job, 1, UPDATES)
    path = world.artifacts.fetch(noise_of(world, job, 1))
    key = noising.read_key(TensorFile.open(path, world.artifacts.keys))
    with StoredFile.open(path, world.artifacts.keys) as file:
        assert (file.seal is None) == (world.artifacts.keys.current is None)
    assert (key in path.read_bytes()) == (world.artifacts.keys.current is None)
    assert not [*(world.folder._directory).glob("*.key")], "nothing is left behind"


@pytest.mark.parametrize(("method", "call"), [("put", 0), ("put", 1), ("close", 0)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_after_a_crash_the_same_updates_have_the_same_key(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str, call: int, when: str
) -> None:
    """A closing may be on its way to the ledger when the aggregator dies: another model would not be that one."""
    job = begun(world)
    owner: Any = world.artifacts if method == "put" else world.ledger
    effect: Callable[..., Any] = getattr(owner, method)
    calls = iter(range(1000))
    seen: list[str] = []

    def crashing(*arguments: Any) -> Any:
        crash = next(calls) == call
        if crash and when == "before":
            raise Unavailable("down")
        result = effect(*arguments)
        if crash:
            raise Unavailable("down")
        return result

    plain = world.folder.fold

    def folding(*arguments: Any) -> str:
        seen.append(plain(*arguments))
        return seen[-1]

    monkeypatch.setattr(owner, method, crashing)
    monkeypatch.setattr(world.folder, "fold", folding)
    with pytest.raises(Unavailable):
        world.submit(job, 1, UPDATES)
    before = keys(world)
    world.coordinator.advance(job)
    assert world.phase(job) is Phase.EVALUATING
    assert len({*seen}) == 1
    assert seen[-1] == world.ledger.rounds[job, 1].global_digest
    kept = noise_of(world, job, 1)
    # A key that was stored and not remembered was used for nothing.
    assert keys(world) - {kept} == (before if (method, call, when) == ("put", 0, "after") else set())


def test_other_updates_have_another_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one key for two sums, the difference of the models would be an update without noise."""
    job = begun(world, quorum=1)
    late = world.artifacts.add(near(9))
    plain = world.folder.fold
    made: list[str] = []

    def slow(recorded: Any, *how: Any) -> str:
        made.append(plain(recorded, *how))
        if len(recorded.updates) == 3:
            world.ledger.members.add(address(9))
            world.ledger.submit(job, 1, address(9), late)
        return made[-1]

    monkeypatch.setattr(world.folder, "fold", slow)
    world.submit(job, 1, UPDATES)
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED
    assert len(world.ledger.rounds[job, 1].accepted()) == 4
    assert len(made) == 2
    used = [Recipe.of(opened(world, digest)).noise for digest in made]
    assert len({*used}) == 2
    numbers = [gaussians.keyed(noising.read_key(opened(world, each or "")), 0, 1000) for each in used]
    assert abs(np.corrcoef(*numbers)[0, 1]) < 0.2


def lose(world: World, digest: str) -> None:
    world.artifacts.fetch(digest).unlink()
    world.artifacts.put_aside.add(digest)


def test_a_model_that_was_lost_is_made_again_with_its_own_key(world: World) -> None:
    job = begun(world, rounds=3)
    world.submit(job, 1, UPDATES)
    head = state_of(world.store.job(job)).head
    content = world.artifacts.content(head)
    lose(world, head)
    world.coordinator._seen_to.clear()
    world.coordinator.advance(job)
    assert world.artifacts.content(head) == content
    assert keys(world) == {noise_of(world, job, 1)}


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_a_model_whose_key_was_lost_is_not_made_with_another(world: World, how: str) -> None:
    job = begun(world, rounds=3)
    world.submit(job, 1, UPDATES)
    head, key = state_of(world.store.job(job)).head, noise_of(world, job, 1)
    if how == "gone":
        lose(world, key)
    else:
        content = bytearray(world.artifacts.fetch(key).read_bytes())
        content[-1] ^= 1
        world.artifacts.fetch(key).write_bytes(content)
    lose(world, head)
    world.coordinator._seen_to.clear()
    with pytest.raises(NoiseKeyLost):
        world.coordinator.advance(job)
    assert not world.artifacts.exists(head)
    assert keys(world) == set()
    assert world.artifacts.is_put_aside(key)


def test_a_key_that_was_lost_before_its_model_was_closed_is_replaced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(world)
    plain = world.ledger.close
    monkeypatch.setattr(world.ledger, "close", lambda *_: (_ for _ in ()).throw(Unavailable("down")))
    with pytest.raises(Unavailable):
        world.submit(job, 1, UPDATES)
    (first,) = keys(world)
    lose(world, first)
    monkeypatch.setattr(world.ledger, "close", plain)
    world.coordinator.advance(job)
    assert noise_of(world, job, 1) != first
    assert world.phase(job) is Phase.EVALUATING


def test_jobs_without_noise_have_no_key(world: World) -> None:
    job = world.create()
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    world.submit(job, 1, UPDATES)
    assert world.phase(job) is Phase.EVALUATING
    assert keys(world) == set()
    assert Recipe.of(opened(world, state_of(world.store.job(job)).head)).noise is None


def test_screening_leaves_updates_out_before_anything_is_added_up(world: World) -> None:
    job = begun(world)
    bad = model(0)
    bad["layer.bias"][2] = np.nan
    world.submit(job, 1, {HOSPITALS[0]: bad, HOSPITALS[1]: near(1), HOSPITALS[2]: near(2)})
    closed = world.ledger.rounds[job, 1]
    assert [item.reason and item.reason.name for item in closed.updates] == ["NON_FINITE", None, None]
    assert closed.status is RoundStatus.CLOSED

"""A job's encoding: asked of the nodes that can, folded as what it stands for, and no other accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator.store import state_of
from concilia_kit import encodings, tensorfile
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.training import TRAIN_TASK, TrainTask

from .conftest import FolderArtifacts, MemoryLedger
from .test_aggregator_service import HOSPITALS, REGISTRATION, World, near

CAN = ("none", "int8", "zstd", "something-newer")


@pytest.fixture
def there(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    return World(tmp_path, ledger, artifacts)


def opened(world: World, **encoding: Any) -> str:
    job = world.create(encoding=encoding, quorum=1)
    world.coordinator.advance(job)
    world.evaluate(job, 0)
    return job


def hand_in(world: World, job: str, hospital: str, text: str, tensors: dict[str, Any], folder: Path) -> TensorFile:
    """Submit an update in an encoding; its file."""
    base = TensorFile.open(world.artifacts.fetch(state_of(world.store.job(job)).head), world.artifacts.keys)
    digest = encodings.encode(folder / "update", Encoding.parse(text), tensors, base).digest
    (folder / "update").replace(world.artifacts.directory / digest)
    world.ledger.submit(job, 1, hospital, digest)
    return TensorFile.open(world.artifacts.fetch(digest), world.artifacts.keys)


def test_nodes_that_can_are_asked_to_and_the_others_send_plain(there: World) -> None:
    there.store.register(HOSPITALS[0], REGISTRATION.model_copy(update={"encodings": CAN}))
    there.store.register(HOSPITALS[1], REGISTRATION.model_copy(update={"encodings": ("none", "int8")}))
    opened(there, name="int8", zstd=True)
    tasks = {who: task for who, name, task in there.sent if name == TRAIN_TASK}
    assert {who: str(TrainTask.model_validate(task).encoding) for who, task in tasks.items()} == {
        HOSPITALS[0]: "int8+zstd",
        HOSPITALS[1]: "none",
        HOSPITALS[2]: "none",
    }
    # A node from before there were encodings refuses a task with a member that it does not know.
    assert ["encoding" in tasks[who] for who in HOSPITALS] == [True, False, False]


def test_encoded_and_plain_updates_are_folded_as_what_they_stand_for(there: World, tmp_path: Path) -> None:
    job = opened(there, name="int8", zstd=True)
    base = TensorFile.open(there.artifacts.fetch(state_of(there.store.job(job)).head), there.artifacts.keys)
    files = [
        hand_in(there, job, HOSPITALS[0], "int8+zstd", near(3), tmp_path),
        hand_in(there, job, HOSPITALS[1], "none", near(5), tmp_path),
    ]
    there.submit(job, 1, {HOSPITALS[2]: near(7)})
    closed = there.ledger.rounds[job, 1]
    assert (closed.status, closed.rejected) == (RoundStatus.CLOSED, 0)
    folded = TensorFile.open(there.artifacts.fetch(closed.global_digest or ""), there.artifacts.keys)
    readers = [encodings.reader(file, base) for file in files]
    for name, spec in base.header.tensors.items():
        if spec.dtype != np.float32:
            continue
        parts = [reader.block(name, 0, spec.size).astype(np.float64) for reader in readers]
        expected = np.mean([*parts, near(7)[name].reshape(-1).astype(np.float64)], axis=0).astype(np.float32)
        np.testing.assert_allclose(folded.flat(name), expected, rtol=2e-7)


@pytest.mark.parametrize("asked", [{"name": "none"}, {"name": "int8"}, {"name": "topk", "share": 0.01}])
def test_an_update_in_another_encoding_is_left_out(there: World, tmp_path: Path, asked: dict[str, Any]) -> None:
    job = opened(there, **asked)
    hand_in(there, job, HOSPITALS[0], "int8+zstd", near(3), tmp_path)
    there.submit(job, 1, {who: near(5) for who in HOSPITALS[1:]})
    closed = there.ledger.rounds[job, 1]
    assert closed.status is RoundStatus.CLOSED
    assert {item.update.hospital: item.reason.name for item in closed.updates if item.reason} == {
        HOSPITALS[0]: "MALFORMED_FILE"
    }


def test_an_encoded_update_with_a_broken_block_is_left_out(there: World, tmp_path: Path) -> None:
    job = opened(there, name="topk", share=0.5)
    base = TensorFile.open(there.artifacts.fetch(state_of(there.store.job(job)).head), there.artifacts.keys)
    encodings.encode(tmp_path / "sound", Encoding.parse("topk:0.5"), near(3), base)
    sound = TensorFile.open(tmp_path / "sound")
    arrays = {name: sound.tensor(name) for name in sound}
    broken = arrays | {"layer.weight#places": np.full_like(arrays["layer.weight#places"], 255)}
    digest = tensorfile.write(tmp_path / "broken", broken, sound.header.metadata)
    encodings.reader(TensorFile.open(tmp_path / "broken"), base)  # its tables add up: only the block itself does not
    (tmp_path / "broken").replace(there.artifacts.directory / digest)
    there.ledger.submit(job, 1, HOSPITALS[0], digest)
    there.submit(job, 1, {who: near(5) for who in HOSPITALS[1:]})
    assert [each.reason.name for each in there.ledger.rounds[job, 1].updates if each.reason] == ["MALFORMED_FILE"]


def test_jobs_from_before_there_were_encodings_load_as_plain() -> None:
    written = JobSpec(name="old", initial="0" * 64).model_dump(mode="json")
    del written["encoding"]
    assert JobSpec.model_validate(written).encoding.plain

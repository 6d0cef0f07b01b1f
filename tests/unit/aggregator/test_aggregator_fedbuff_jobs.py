"""Whole asynchronous jobs: late work counts in a later round with its weight, and the verifier agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.verification.verifier import Verifier
from concilia_kit import digests, signing, tensorfile
from concilia_kit.digests import in_order, of_contributions
from concilia_kit.encodings import STALENESS
from concilia_kit.signing import Domain
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import EventName, LedgerEvent, LedgerUpdate, Reason, RoundStatus
from concilia_kit.wire.jobs import Phase
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import TRAIN_TASK, Architecture, TrainTask, UpdateMetrics
from concilia_kit.wire.verification import Verdict
from eth_account import Account

from .conftest import METRICS, FolderArtifacts, MemoryLedger, model
from .test_aggregator_service import REGISTRATION, World, report

FEDBUFF = Strategy(name=StrategyName.FEDBUFF)
DOMAIN = Domain(chain_id=1337, contract="0x" + "11" * 20)
KEYS = [Account.from_key(bytes([i + 1]) * 32) for i in range(3)]
FAST, OTHER, SLOW = (key.address for key in KEYS)


def late(rounds_: int) -> UpdateMetrics:
    return METRICS.model_copy(update={"staleness": rounds_})


class Consortium(World):
    """Three hospitals with keys, whose updates are signed, and the events that the contract would have emitted."""

    def __init__(self, folder: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> None:
        super().__init__(folder, ledger, artifacts)
        ledger.members = {key.address for key in KEYS}
        for key in KEYS:
            self.store.register(key.address, REGISTRATION)

    def begin(self, **changes: Any) -> str:
        job = self.create(**{"strategy": FEDBUFF.model_dump(), "quorum": 2, "rounds": 2, **changes})
        self.coordinator.advance(job)
        self.rate(job, 0)
        return job

    def rate(self, job: str, round_: int) -> None:
        head = self.initial if not round_ else self.ledger.rounds[job, round_].global_digest
        assert head is not None
        for hospital in (FAST, OTHER):  # the slow one still trains
            self.coordinator.report(hospital, report(job, round_, head))
        self.coordinator.advance(job)

    def keep(self, tensors: dict[str, Any], tau: int) -> str:
        """Store an update whose file says that it is so late."""
        path = self.artifacts.directory / "update"
        digest = tensorfile.write(path, tensors, {STALENESS: str(tau)} if tau else None)
        if not self.artifacts.exists(digest):  # the store leaves a file as it is that it has
            path.rename(self.artifacts.directory / digest)
        return digest

    def hand_in(self, job: str, number: int, hospital: str, tensors: dict[str, Any], tau: int = 0) -> None:
        self.ledger.submit(job, number, hospital, self.keep(tensors, tau), metrics=late(tau))
        self.coordinator.advance(job)

    def global_model(self, job: str, number: int) -> TensorFile:
        digest = self.ledger.rounds[job, number].global_digest
        assert digest is not None
        return TensorFile.open(self.artifacts.fetch(digest), self.artifacts.keys)

    def verify(self, job: str, change: Any = lambda item: item) -> Verdict:
        events: list[LedgerEvent] = []
        signed: list[LedgerUpdate] = []

        def emit(name: EventName, number: int, **arguments: str | int) -> None:
            place = len(events)
            events.append(
                LedgerEvent(
                    name=name,
                    job=job,
                    round=number,
                    block=place + 1,
                    log_index=0,
                    transaction=f"0x{place:064x}",
                    arguments=arguments,
                )
            )

        numbers = sorted(number for of, number in self.ledger.rounds if of == job)
        for number in numbers:
            found = self.ledger.rounds[job, number]
            emit(EventName.ROUND_OPENED, number, base=found.base, deadline=found.deadline, quorum=found.quorum)
            for item in found.updates:
                update, key = item.update, next(key for key in KEYS if key.address == item.update.hospital)
                signature = signing.sign(update, DOMAIN, key)
                signed.append(change(item.model_copy(update={"signature": signature})))
                emit(
                    EventName.UPDATE_RECORDED,
                    number,
                    hospital=update.hospital,
                    digest=update.digest,
                    samples=update.samples,
                    metrics=update.metrics,
                )
                if item.reason is not None:
                    emit(EventName.UPDATE_REJECTED, number, hospital=update.hospital, reason=int(item.reason))
            assert found.global_digest is not None
            assert found.contributions is not None
            emit(
                EventName.ROUND_CLOSED,
                number,
                globalDigest=found.global_digest,
                contributions=found.contributions,
                count=len(found.accepted()),
            )
        emit(EventName.MODEL_PUBLISHED, numbers[-1], digest=self.ledger.published[job])
        return Verifier(DOMAIN, self, lambda *_: None, keys=self.artifacts.keys).verify(job, events, signed)

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `verifier.ArtifactSource`."""
        del folder
        return self.artifacts.fetch(digest)


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> Consortium:
    return Consortium(tmp_path, ledger, artifacts)


def moved(base: TensorFile | dict[str, Any], by: float) -> dict[str, Any]:
    names = ("layer.weight", "layer.bias", "norm.num_batches_tracked")
    start = {name: np.array(base[name] if isinstance(base, dict) else base.tensor(name)) for name in names}
    steps = {name: by if value.dtype == np.float32 else 1 for name, value in start.items()}
    return {name: np.asarray(value + value.dtype.type(steps[name])) for name, value in start.items()}


def finished(world: Consortium) -> str:
    """Two hospitals close round 1; in round 2 the slow one's work of round 1 counts beside a fast one's."""
    job = world.begin()
    asked = [TrainTask.model_validate(task) for _, name, task in world.sent if name == TRAIN_TASK]
    assert [(task.round, task.asynchronous) for task in asked] == [(1, True)] * 3
    world.hand_in(job, 1, FAST, moved(model(0), 0.25))
    world.hand_in(job, 1, OTHER, moved(model(0), 0.75))
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED
    world.rate(job, 1)
    base = world.global_model(job, 1)
    world.hand_in(job, 2, SLOW, moved(base, 0.5), tau=1)
    assert world.ledger.rounds[job, 2].status is RoundStatus.OPEN
    world.hand_in(job, 2, FAST, moved(base, 0.125))
    world.rate(job, 2)
    assert world.phase(job) is Phase.FINISHED
    return job


def test_a_slow_hospitals_work_counts_in_a_later_round_with_its_weight_and_verifies(world: Consortium) -> None:
    job = finished(world)
    first, second = world.global_model(job, 1), world.global_model(job, 2)
    expected = model(0)["layer.weight"] + np.float32(0.5)
    assert np.allclose(first.tensor("layer.weight"), expected, atol=1e-6)
    step = (0.5 / np.sqrt(2) + 0.125) / 2
    assert np.allclose(second.tensor("layer.weight"), expected + step, atol=1e-5)
    found = world.ledger.rounds[job, 2]
    assert [item.metrics and item.metrics.staleness for item in found.accepted()] == [1, 0]
    verdict = world.verify(job)
    assert verdict.findings == ()
    assert (verdict.ok, verdict.rounds, verdict.updates) == (True, 2, 4)


def test_an_auditor_needs_the_chain_and_the_files_alone(world: Consortium) -> None:
    verdict = world.verify(finished(world), lambda item: item.model_copy(update={"metrics": None}))
    assert (verdict.ok, verdict.rounds) == (True, 2)


def test_an_update_that_counted_and_is_later_than_can_be_is_found(
    world: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("concilia_aggregator.staleness.most", lambda _number: 99)  # an aggregator that lets it pass
    job = world.begin()
    world.hand_in(job, 1, FAST, moved(model(0), 0.25))
    world.hand_in(job, 1, SLOW, moved(model(0), 0.25), tau=1)
    world.rate(job, 1)
    for hospital in (FAST, OTHER):
        world.hand_in(job, 2, hospital, moved(world.global_model(job, 1), 0.25))
    world.rate(job, 2)
    monkeypatch.undo()
    findings = world.verify(job).findings
    assert [(each.round, each.hospital, each.what) for each in findings] == [
        (1, SLOW, "it says that it is 1 rounds late"),
    ]


def test_a_model_that_weighed_late_work_like_any_other_is_found(
    world: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished(world)
    found = world.ledger.rounds[job, 2]
    files = [
        TensorFile.open(world.artifacts.fetch(item.update.digest), world.artifacts.keys) for item in found.accepted()
    ]
    target = world.artifacts.directory / "wrong"
    monkeypatch.setattr("concilia_aggregator.folding.staleness_of", lambda _: 0)
    digest = fold(files, [10, 10], Recipe(Architecture.RESNET18, 2, FEDBUFF), target)
    monkeypatch.undo()
    target.rename(world.artifacts.directory / digest)
    world.ledger.rounds[job, 2] = found.model_copy(update={"global_digest": digest})
    world.ledger.published[job] = digest
    assert [each.what[:15] for each in world.verify(job).findings] == ["folded again it"]


def test_who_claims_to_be_later_than_can_be_is_named_and_left_out(world: Consortium) -> None:
    job = world.begin()
    world.hand_in(job, 1, FAST, moved(model(0), 0.1), tau=1)
    world.hand_in(job, 1, OTHER, moved(model(0), 0.1))
    assert world.ledger.rounds[job, 1].status is RoundStatus.OPEN
    assert world.ledger.rounds[job, 1].updates[0].reason is Reason.SAMPLE_COUNT
    world.hand_in(job, 1, SLOW, moved(model(0), 0.3))
    assert world.ledger.rounds[job, 1].status is RoundStatus.CLOSED


def test_nothing_is_late_in_a_job_that_waits_for_all(world: Consortium) -> None:
    job = world.create(strategy={"name": "fedavg"}, quorum=2)
    world.coordinator.advance(job)
    for hospital in (FAST, OTHER, SLOW):
        world.coordinator.report(hospital, report(job, 0, world.initial))
    world.coordinator.advance(job)
    base = moved(model(0), 0.1)
    world.hand_in(job, 1, FAST, base)
    world.hand_in(job, 1, OTHER, base, tau=1)
    world.hand_in(job, 1, SLOW, base)
    reasons = {item.update.hospital: item.reason for item in world.ledger.rounds[job, 1].updates}
    assert reasons == {FAST: None, OTHER: Reason.SAMPLE_COUNT, SLOW: None}


def test_a_merkle_round_takes_late_work_too(world: Consortium) -> None:
    job = world.begin(recording="merkle")
    world.hand_in(job, 1, FAST, moved(model(0), 0.25))
    world.hand_in(job, 1, OTHER, moved(model(0), 0.25))
    world.rate(job, 1)
    base = world.global_model(job, 1)
    world.hand_in(job, 2, SLOW, moved(base, 0.5), tau=1)
    world.hand_in(job, 2, OTHER, moved(base, 0.5))
    step = (0.5 / np.sqrt(2) + 0.5) / 2
    made = world.global_model(job, 2).tensor("layer.bias")
    assert np.allclose(made, base.tensor("layer.bias") + step, atol=1e-5)


def test_contributions_say_nothing_of_staleness(world: Consortium) -> None:
    """What the contract knows of a round is as it was: who, which update, how many samples."""
    job = finished(world)
    found = world.ledger.rounds[job, 2]
    listed = [digests.Contribution(item.update.hospital, item.update.digest, 10) for item in found.accepted()]
    assert of_contributions(in_order(listed)) == found.contributions

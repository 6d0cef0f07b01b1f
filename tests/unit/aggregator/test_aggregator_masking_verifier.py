"""A secure job verifies; whoever put its sum together otherwise than its hospitals agreed to is found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from concilia_aggregator.folding import Recipe
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import Verifier
from concilia_kit import digests, signing
from concilia_kit.digests import Contribution, in_order, of_contributions
from concilia_kit.masking import Secrets, advertise
from concilia_kit.sealing import NO_KEYS
from concilia_kit.tensorfile import TensorFile, TensorWriter
from concilia_kit.wire.chain import EventName, LedgerUpdate
from concilia_kit.wire.masking import Masked, SignedKeys, Stage, Unmasking
from concilia_kit.wire.verification import Verdict

from .conftest import METRICS, FolderArtifacts, MemoryLedger
from .secure_world import DEADLINE_SECONDS, DOMAIN, Hospital, SecureWorld
from .test_aggregator_verifier import Job

Change = Callable[[Unmasking], Unmasking]


class SecureJob(Job):
    """A finished secure job, as the ledger and the store have it. `name` is its id."""

    name: str

    def emit_as(self, name: EventName, **arguments: str | int) -> None:
        self.emit(name, 1, **arguments)
        self.events[-1] = self.events[-1].model_copy(update={"job": self.name})

    def check(self) -> Verdict:
        verifier = Verifier(DOMAIN, FolderSource(self.store), lambda *_: None)
        return verifier.verify(self.name, self.events, self.signed)

    def findings(self) -> list[str]:
        return [each.what for each in self.check().findings]


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> SecureWorld:
    """Four hospitals, of which one dropped out before its update."""
    (tmp_path / "artifacts").mkdir()
    world = SecureWorld(tmp_path, ledger, FolderArtifacts(tmp_path / "artifacts", keys=NO_KEYS))
    world.hospitals[1].leaves = Stage.INPUTS
    job = world.create()
    world.round(job)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + DEADLINE_SECONDS + 5)
    world.advance(job)
    world.round(job)
    return world


def finished(
    world: SecureWorld,
    store: Path,
    change: Change = lambda unmasking: unmasking,
    roster: str | None = None,
    sealed: bool = True,
) -> SecureJob:
    """What the ledger has of the world's round, closed on a model that `change` says was unmasked otherwise. `roster`:
    the one that its first hospital's metrics name, in place of the round's; `sealed`: whether folding goes by masks."""
    store.mkdir()
    job = SecureJob(store)
    job.name = world.store.jobs()[0].id
    recorded = world.ledger.rounds[job.name, 1]
    accounts = {each.address: each.account for each in world.hospitals}
    base = job.put(world.artifacts.content(world.initial))
    job.emit_as(EventName.ROUND_OPENED, base=base, deadline=10, quorum=2)
    for number, item in enumerate(recorded.updates):
        job.put(world.artifacts.content(item.update.digest))
        metrics = item.metrics
        if roster is not None and number == 0:
            metrics = METRICS.model_copy(update={"masked": Masked(roster=roster, clipped=0)})
        assert metrics is not None
        update = item.update.model_copy(update={"metrics": digests.of_json(metrics.model_dump(mode="json"))})
        signature = signing.sign(update, DOMAIN, accounts[update.hospital])
        signed = {"update": update, "metrics": metrics, "signature": signature}
        job.signed.append(LedgerUpdate.model_validate({**item.model_dump(), **signed}))
        job.emit_as(
            EventName.UPDATE_RECORDED,
            hospital=update.hospital,
            digest=update.digest,
            samples=update.samples,
            metrics=update.metrics,
        )
    accepted = in_order(
        Contribution(item.update.hospital, item.update.digest, item.update.samples) for item in recorded.accepted()
    )
    digest = job.put(world.artifacts.content(recorded.global_digest or ""))
    recipe = Recipe.of(TensorFile.open(job.path(digest)))
    assert recipe.masking is not None
    changed = replace(recipe, masking=change(recipe.masking) if sealed else None)
    if changed != recipe:
        digest = job.put(otherwise(job, changed, digest))
    job.emit_as(
        EventName.ROUND_CLOSED,
        globalDigest=digest,
        contributions=of_contributions(accepted),
        count=len(accepted),
    )
    job.emit_as(EventName.MODEL_PUBLISHED, digest=digest)
    return job


def otherwise(job: SecureJob, recipe: Recipe, model: str) -> bytes:
    """The model's tensors under another recipe."""
    made, target = TensorFile.open(job.path(model)), job.store / "otherwise"
    with TensorWriter(target, made.header.tensors, recipe.metadata()) as writer:
        for name in writer.order:
            writer.append(made.flat(name))
    return target.read_bytes()


def test_a_secure_job_verifies(world: SecureWorld, tmp_path: Path) -> None:
    job = finished(world, tmp_path / "store")
    verdict = job.check()
    assert verdict.findings == ()
    assert (verdict.ok, verdict.rounds, verdict.updates, verdict.signatures) == (True, 1, 3, 3)


def other_keys(world: SecureWorld, hospital: Hospital, signer: Hospital | None = None, **changes: object) -> SignedKeys:
    fields: dict[str, Any] = {"job": world.store.jobs()[0].id, "round_": 1, "base": world.initial, "samples": 30}
    keys = advertise(Secrets.new(), hospital=hospital.address, **(fields | changes))
    return SignedKeys(keys=keys, signature=signing.sign(keys.statement(), DOMAIN, (signer or hospital).account))


def with_keys(unmasking: Unmasking, signed: SignedKeys) -> Unmasking:
    members = tuple(signed if each.keys.hospital == signed.keys.hospital else each for each in unmasking.roster.members)
    return unmasking.model_copy(update={"roster": unmasking.roster.model_copy(update={"members": members})})


def one_of(seeds: dict[str, str]) -> dict[str, str]:
    first, *_ = seeds
    return {**seeds, first: "5a" * 16}


def test_a_seed_that_is_not_its_commitments_is_found(world: SecureWorld, tmp_path: Path) -> None:
    job = finished(world, tmp_path / "store", lambda it: it.model_copy(update={"seeds": one_of(it.seeds)}))
    found = job.check().findings
    assert found[0].what == "the seed that its mask was taken off by is not that of its commitment"
    assert found[0].hospital == world.hospitals[0].address


def test_a_seed_that_is_not_its_public_keys_is_found(world: SecureWorld, tmp_path: Path) -> None:
    job = finished(world, tmp_path / "store", lambda it: it.model_copy(update={"keys": one_of(it.keys)}))
    found = job.check().findings
    assert found[0].what == "the seed of its masking key is not that of its public key"
    assert found[0].hospital == world.hospitals[1].address


def test_a_sum_of_others_than_the_contributions_is_found(world: SecureWorld, tmp_path: Path) -> None:
    def without(unmasking: Unmasking) -> Unmasking:
        gone = unmasking.survivors[-1]
        seeds = {name: seed for name, seed in unmasking.seeds.items() if name != gone}
        return unmasking.model_copy(update={"survivors": unmasking.survivors[:-1], "seeds": seeds})

    job = finished(world, tmp_path / "store", without)
    assert job.findings()[0] == "it was unmasked as the sum of others than its contributions"


def test_below_its_threshold_a_sum_is_found(world: SecureWorld, tmp_path: Path) -> None:
    def strict(unmasking: Unmasking) -> Unmasking:
        return unmasking.model_copy(update={"roster": unmasking.roster.model_copy(update={"threshold": 1.0})})

    found = finished(world, tmp_path / "store", strict).findings()
    assert any("not unmasked by the rules" in each for each in found)
    assert any("another roster" in each for each in found)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "it signed to be masked by another roster than its round was unmasked by"),
        ({"job": "b" * 64}, "the keys of its masks are of another job, round or base"),
        ({"round_": 2}, "the keys of its masks are of another job, round or base"),
        ({"base": "1" * 64}, "the keys of its masks are of another job, round or base"),
        ({"samples": 1}, "it weighs more samples than the keys of its masks say"),
    ],
)
def test_a_roster_with_other_keys_is_found(
    world: SecureWorld, tmp_path: Path, changes: dict[str, object], what: str
) -> None:
    signed = other_keys(world, world.hospitals[0], **changes)
    job = finished(world, tmp_path / "store", lambda it: with_keys(it, signed))
    assert what in job.findings()


def test_keys_that_their_hospital_did_not_sign_are_found(world: SecureWorld, tmp_path: Path) -> None:
    signed = other_keys(world, world.hospitals[1], signer=world.hospitals[2])
    job = finished(world, tmp_path / "store", lambda it: with_keys(it, signed))
    found = [(each.hospital, each.what) for each in job.check().findings]
    assert (world.hospitals[1].address, "the keys of its masks are not signed by it") in found


def test_a_hospital_that_signed_another_roster_is_found(world: SecureWorld, tmp_path: Path) -> None:
    job = finished(world, tmp_path / "store", roster="9" * 64)
    (found,) = job.check().findings
    assert found.what == "it signed to be masked by another roster than its round was unmasked by"
    assert found.hospital == job.signed[0].update.hospital


def test_masked_updates_in_a_model_that_says_nothing_of_masks_are_found(world: SecureWorld, tmp_path: Path) -> None:
    job = finished(world, tmp_path / "store", sealed=False)
    assert job.findings()[0] == "its updates are masked, and its file does not say how they became a sum"

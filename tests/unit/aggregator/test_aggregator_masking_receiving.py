"""What hospitals leave in a room: looked at before it is kept, kept as it came, told to whom it concerns in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from concilia_aggregator import main
from concilia_aggregator.errors import (
    JobNotFound,
    MaskingConflict,
    MaskingInvalid,
    MaskingNotReady,
    MaskingStageOver,
    RoundNotFound,
)
from concilia_aggregator.masking import rules
from concilia_aggregator.masking.rooms import Kind, Rooms, Taken
from concilia_aggregator.masking.rules import roster_of
from concilia_kit import masking, signing
from concilia_kit.masking.graph import degree
from concilia_kit.sealing import NO_KEYS
from concilia_kit.wire.masking import (
    MOST_MEMBERS,
    Consent,
    Parcel,
    Revealed,
    SecureAggregation,
    Shares,
    SignedKeys,
    Stage,
)
from eth_account import Account

from .conftest import FolderArtifacts, MemoryLedger, address
from .secure_world import DOMAIN, STAGE_SECONDS, Hospital, SecureWorld


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger) -> SecureWorld:
    (tmp_path / "artifacts").mkdir()
    return SecureWorld(tmp_path, ledger, FolderArtifacts(tmp_path / "artifacts", keys=NO_KEYS))


def at(world: SecureWorld, stage: Stage, **changes: Any) -> str:
    """A job whose first round has come so far."""
    job = world.create(**changes)
    for _ in range(10):
        if world.room(job).stage is stage:
            return job
        for each in world.hospitals:
            world.act(job, each)
        world.advance(job)
    raise AssertionError(f"never at {stage}")


def signed(hospital: Hospital, /, **changes: Any) -> SignedKeys:
    keys = next(iter(hospital.own.values())).keys.model_copy(update=changes)
    return SignedKeys(keys=keys, signature=signing.sign(keys.statement(), DOMAIN, hospital.account))


def test_what_comes_again_is_taken_and_what_is_another_is_refused(world: SecureWorld) -> None:
    job, first = world.create(), world.hospitals[0]
    keys = first.keys(job, 1, world.initial)
    for _ in range(2):
        world.receiving.keys(job, 1, first.address, keys)
    with pytest.raises(MaskingConflict):
        world.receiving.keys(job, 1, first.address, signed(first, samples=1))
    for each in world.hospitals:
        world.act(job, each)
    world.advance(job)
    world.receiving.keys(job, 1, first.address, keys)  # whose answer was lost
    with pytest.raises(MaskingConflict):
        world.receiving.keys(job, 1, first.address, signed(first, samples=1))


def test_of_two_at_one_moment_one_is_kept(world: SecureWorld) -> None:
    job, first = world.create(), world.hospitals[0]
    rooms = world.store.masking
    rooms.add(Kind.KEYS, job, 1, first.address, {"a": 1})
    with pytest.raises(Taken):
        rooms.add(Kind.KEYS, job, 1, first.address, {"a": 2})
    assert rooms.message(Kind.KEYS, job, 1, first.address) == {"a": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"job": "b" * 64},
        {"round": 2},
        {"base": "1" * 64},
        {"samples": 71},  # registered are 70
        {"sealing": "0" * 64},  # of low order
        {"masking": "0" * 64},
        {"hospital": address(5)},
    ],
)
def test_keys_that_nobody_would_mask_by_are_refused(world: SecureWorld, changes: dict[str, Any]) -> None:
    job, first = world.create(), world.hospitals[0]
    first.keys(job, 1, world.initial)
    with pytest.raises(MaskingInvalid):
        world.receiving.keys(job, 1, first.address, signed(first, **changes))
    assert not world.store.masking.senders(Kind.KEYS, job, 1)


def test_keys_are_signed_by_their_hospital_and_have_one_purpose_each(world: SecureWorld) -> None:
    job, (first, second, *_) = world.create(), world.hospitals
    keys = first.keys(job, 1, world.initial)
    theirs = signing.sign(keys.keys.statement(), DOMAIN, second.account)
    for signature in (theirs, "0x00", theirs[:-2] + "ff"):
        with pytest.raises(MaskingInvalid):
            world.receiving.keys(job, 1, first.address, SignedKeys(keys=keys.keys, signature=signature))
    with pytest.raises(MaskingInvalid):
        world.receiving.keys(job, 1, first.address, signed(first, sealing=keys.keys.masking))


def test_who_was_not_asked_is_too_late(world: SecureWorld) -> None:
    job = world.create()
    stranger = Hospital(Account.create(), 10, 9)
    world.join(stranger)
    with pytest.raises(MaskingStageOver):
        world.receiving.keys(job, 1, stranger.address, stranger.keys(job, 1, world.initial))


def test_no_round_no_room(world: SecureWorld) -> None:
    job, first = world.create(), world.hospitals[0]
    with pytest.raises(RoundNotFound):
        world.receiving.view(job, 2, first.address)
    with pytest.raises(JobNotFound):
        world.receiving.view("b" * 64, 1, first.address)


def shares_of(world: SecureWorld, job: str, hospital: Hospital) -> Shares:
    return masking.share(hospital.secrets[1], roster_of(world.room(job)), hospital.address)


@pytest.mark.parametrize(
    "change",
    [
        lambda good, _: good.model_copy(update={"roster": "1" * 64}),
        lambda good, _: good.model_copy(update={"parcels": good.parcels[1:]}),
        lambda good, _: good.model_copy(update={"parcels": (*good.parcels, good.parcels[0])}),
        lambda good, _: good.model_copy(
            update={"parcels": (good.parcels[0].model_copy(update={"sender": address(9)}), *good.parcels[1:])}
        ),
        lambda good, own: good.model_copy(
            update={"parcels": (good.parcels[0].model_copy(update={"recipient": own}), *good.parcels[1:])}
        ),
    ],
)
def test_shares_go_to_who_holds_them(world: SecureWorld, change: Callable[[Shares, str], Shares]) -> None:
    job, first = at(world, Stage.SHARES), world.hospitals[0]
    good = shares_of(world, job, first)
    with pytest.raises(MaskingInvalid):
        world.receiving.shares(job, 1, first.address, change(good, first.address))
    world.receiving.shares(job, 1, first.address, good)
    world.receiving.shares(job, 1, first.address, good)
    assert world.store.masking.senders(Kind.SHARES, job, 1) == {first.address}


def test_each_stage_has_its_messages(world: SecureWorld) -> None:
    job, first = world.create(), world.hospitals[0]
    name = first.address
    nothing = Shares(roster="0" * 64, parcels=())
    consent = Consent(hospital=name, signature="0x00")
    revealed = Revealed(hospital=name, roster="0" * 64, seeds={}, keys={})
    for call in (
        lambda: world.receiving.shares(job, 1, name, nothing),
        lambda: world.receiving.consent(job, 1, name, consent),
        lambda: world.receiving.reveal(job, 1, name, revealed),
    ):
        with pytest.raises(MaskingNotReady):
            call()
    world.round(job)
    for late in (
        lambda: world.receiving.keys(job, 1, name, first.own[1]),
        lambda: world.receiving.shares(job, 1, name, nothing),
        lambda: world.receiving.consent(job, 1, name, consent),
        lambda: world.receiving.reveal(job, 1, name, revealed),
    ):
        with pytest.raises(MaskingStageOver):
            late()


def test_a_consent_is_signed_by_who_is_in_the_sum(world: SecureWorld) -> None:
    world.hospitals[3].leaves = Stage.SHARES
    job = world.create()
    world.round(job)
    with pytest.MonkeyPatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() + STAGE_SECONDS + 1)
        world.advance(job)
    for each in world.hospitals:
        world.act(job, each)
    world.advance(job)
    assert world.room(job).stage is Stage.CONSENT
    first, second, _, gone = world.hospitals
    view = world.receiving.view(job, 1, first.address)
    for signature in (second.consent(view).signature, "0x00"):
        with pytest.raises(MaskingInvalid):
            world.receiving.consent(job, 1, first.address, Consent(hospital=first.address, signature=signature))
    with pytest.raises(MaskingInvalid):
        world.receiving.consent(job, 1, first.address, second.consent(view))
    with pytest.raises(MaskingStageOver):
        world.receiving.consent(job, 1, gone.address, gone.consent(view))
    world.receiving.consent(job, 1, first.address, first.consent(view))


@pytest.mark.parametrize(
    "change",
    [
        lambda good, other: good.model_copy(update={"hospital": other}),
        lambda good, _: good.model_copy(update={"roster": "1" * 64}),
        lambda good, other: good.model_copy(update={"keys": {other: "0" * 64}}),
        lambda good, other: good.model_copy(
            update={"seeds": {name: share for name, share in good.seeds.items() if name != other}}
        ),
    ],
)
def test_of_who_is_in_the_sum_no_share_of_the_key_is_taken(
    world: SecureWorld, change: Callable[[Revealed, str], Revealed]
) -> None:
    job = at(world, Stage.REVEAL)
    first, second, *_ = world.hospitals
    survivors = world.room(job).survivors
    assert survivors is not None
    good = masking.reveal(first.held[1], roster_of(world.room(job)), first.address, survivors)
    with pytest.raises(MaskingInvalid):
        world.receiving.reveal(job, 1, first.address, change(good, second.address))
    world.receiving.reveal(job, 1, first.address, good)


def test_a_wrong_share_is_passed_over_where_others_are_enough(world: SecureWorld) -> None:
    job = at(world, Stage.REVEAL)
    liar, *others = world.hospitals
    room = world.room(job)
    assert room.survivors is not None
    wrong = masking.reveal(liar.held[1], roster_of(room), liar.address, room.survivors)
    wrong = wrong.model_copy(update={"seeds": dict.fromkeys(wrong.seeds, "1" * 64)})
    world.receiving.reveal(job, 1, liar.address, wrong)
    for each in others[:2]:
        world.act(job, each)
    world.advance(job)
    assert world.room(job).stage is Stage.REVEAL  # three are enough, if none is wrong
    world.act(job, others[2])
    world.advance(job)
    assert world.room(job).stage is Stage.OVER


def test_each_is_told_what_it_needs_and_nothing_before(world: SecureWorld) -> None:
    job, first = world.create(secure={"group": 3}, strategy={"name": "median"}), world.hospitals[0]
    told = []
    for _ in range(10):
        view = world.receiving.view(job, 1, first.address)
        told.append((view.stage, {name for name, value in view if value} - {"stage"}))
        if view.stage is Stage.INPUTS:
            assert {each.recipient for each in view.parcels} == {first.address}
            assert {each.sender for each in view.parcels} == {each.address for each in world.hospitals[1:]}
        if view.stage is Stage.OVER:
            break
        for each in world.hospitals:
            world.act(job, each)
        world.advance(job)
    assert told == [
        (Stage.KEYS, set()),
        (Stage.SHARES, {"roster"}),
        (Stage.INPUTS, {"roster", "sharers", "parcels"}),
        (Stage.CONSENT, {"survivors"}),
        (Stage.REVEAL, {"survivors", "consents"}),
        (Stage.OVER, set()),
    ]


def test_a_room_that_another_worker_moved_is_not_moved_again(world: SecureWorld) -> None:
    job = at(world, Stage.SHARES)
    rooms: Rooms = world.store.masking
    room = world.room(job)
    assert rooms.move(room, room)
    for each in world.hospitals:
        world.act(job, each)
    world.advance(job)
    assert not rooms.move(room, rules.abort(room, "too late", 0.0))
    assert world.room(job).stage is Stage.INPUTS


def test_shares_for_as_many_holders_as_there_may_be_fit_into_a_request() -> None:
    holders = degree(MOST_MEMBERS, SecureAggregation().threshold).neighbours
    sealed = "a" * 2 * (12 + 64 + 16)  # nonce, two shares, tag
    parcels = tuple(Parcel(sender=address(1), recipient=address(2), sealed=sealed) for _ in range(holders))
    assert holders > 200
    assert len(Shares(roster="0" * 64, parcels=parcels).model_dump_json()) < main.MAX_BODY


def test_a_parcel_is_as_long_as_is_thought(world: SecureWorld) -> None:
    job, first = at(world, Stage.SHARES), world.hospitals[0]
    assert {len(each.sealed) for each in shares_of(world, job, first).parcels} == {2 * (12 + 64 + 16)}

"""A hospital's part in a secure round, against a room that goes by the aggregator's rules: the sum is right, a node
that is killed anywhere goes on with the same bytes, and nothing is believed."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_client_node import masking as node_masking
from concilia_client_node.consortium import Consortium
from concilia_client_node.errors import Refused, Stopped
from concilia_client_node.masking_folder import RoundMasking
from concilia_client_node.store import NodeFolder
from concilia_client_node.unmasking import see_ledger as really_see_ledger
from concilia_kit import digests, masking, signing
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import LedgerUpdate, Reason, RoundStatus, UpdateSubmission
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.masking import Consent, MaskingView, SecureAggregation, Survivors
from concilia_kit.wire.masking import Stage as Masking
from concilia_kit.wire.progress import Progress, Stage
from concilia_kit.wire.training import EvaluateTask, Evaluation, UnmaskTask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .masked_rounds import ACCOUNT, DOMAIN, IMAGES, JOB, Round, listed, secure_round
from .room_double import Peer, Room, submission

OWN = ACCOUNT.address


@pytest.fixture
def masked(consortium: Any, tmp_path: Path) -> Iterator[Round]:
    with secure_round(consortium, tmp_path / "round") as made:
        yield made


def train(masked: Round) -> Progress:
    hospital = masked.hospital()
    masked.consortium.ask(hospital, masked.task)
    return masked.ended(hospital)


def unmask(masked: Round, task: UnmaskTask | None = None) -> Progress:
    """As `settle` says, or another list."""
    hospital = masked.hospital()
    masked.consortium.ask(hospital, task or masked.room.settle())
    return masked.ended(hospital)


def test_the_sum_is_the_mean_and_no_update_is_seen(masked: Round) -> None:
    assert train(masked).stage is Stage.SUBMITTED
    masked.room.submit()
    assert unmask(masked).stage is Stage.SUBMITTED
    masked.see_mean(masked.room.peers)
    update = masked.masked()
    assert masked.room.roster is not None
    assert update.metrics.masked is not None
    assert update.metrics.masked.roster == masked.room.roster.digest()
    assert update.update.samples == IMAGES
    path = masked.folder / "node" / "updates" / JOB / "1" / "update.safetensors"
    file = TensorFile.open(path)
    assert {name: spec.dtype for name, spec in file.header.tensors.items()} == {"w": np.int32, "b": np.int32}
    # The change is one and the same everywhere; of 120 random words two are alike once in 600,000 rounds.
    assert len(np.unique(file.flat("w"))) == 120
    assert masked.trainer.trained == 1


def test_what_is_kept_is_the_owners_alone(masked: Round) -> None:
    train(masked)
    masked.room.submit()
    unmask(masked)
    kept = masked.folder / "node" / "masking" / JOB / "1"
    names = {path.name for path in kept.iterdir()}
    assert names == {f"{name}.json" for name in ("secrets", "roster", "held", "sent", "agreed", "revealed")}
    for path in kept.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


def test_what_leaves_is_listed_before_it_leaves(masked: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    for name in ("advertise", "share", "store", "submit", "consent", "reveal"):
        real = getattr(Consortium, name)

        def noting(*given: Any, real: Any = real, name: str = name) -> Any:
            seen.append((name, [each["what"] for each in listed(masked)]))
            return real(*given)

        monkeypatch.setattr(Consortium, name, noting)
    train(masked)
    masked.room.submit()
    unmask(masked)
    whats = ["keys", "sealed shares", "update's file", "update's statement", "consent to a sum", "revealed shares"]
    assert [name for name, _ in seen] == ["advertise", "share", "store", "submit", "consent", "reveal"]
    assert [there for _, there in seen] == [whats[: count + 1] for count in range(len(whats))]
    file = listed(masked)[2]
    assert [each["name"] for each in file["tensors"]] == ["b", "w"]
    assert (file["tensors"][1]["dtype"], file["tensors"][1]["elements"], file["tensors"][1]["bytes"]) == (
        "int32",
        120,
        480,
    )
    assert file["counts"]["elements"] == 125
    statement, sent = listed(masked)[3], masked.masked()
    assert statement["signature"] == sent.signature
    assert statement["digest"] == file["digest"] == sent.update.digest


class Killed(BaseException):
    """The process is gone."""


CALLS = ("advertise", "share", "store", "submit", "consent", "reveal")
STEPS = ("own", "roster", "held", "sent", "agreed", "revealed")


def kill_at(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, when: str, given: list[Any]) -> None:
    """Once, before or after a method; what it was given is noted each time."""
    real, left = getattr(kind, name), [1]

    def killing(self: Any, *arguments: Any) -> Any:
        given.append(arguments[-1])
        strike = left.pop() if left else 0
        if strike and when == "before":
            raise Killed
        found = real(self, *arguments)
        if strike:
            raise Killed
        return found

    monkeypatch.setattr(kind, name, killing)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", [*CALLS, *(f"keep_{step}" for step in STEPS), "keep_trained", "keep_metrics"])
def test_a_node_that_is_killed_goes_on_with_the_same_bytes(
    masked: Round, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    given: list[Any] = []
    kind = Consortium if name in CALLS else NodeFolder if name in {"keep_trained", "keep_metrics"} else RoundMasking
    kill_at(monkeypatch, kind, name, when, given)
    killed = 0

    def until_done(work: Callable[[], Progress]) -> Progress:
        nonlocal killed
        try:
            return work()
        except Killed:
            killed += 1
            return work()

    assert until_done(lambda: train(masked)).stage is Stage.SUBMITTED, masked.consortium.progress[-1]
    masked.room.submit()
    task = masked.room.settle()
    assert until_done(lambda: unmask(masked, task)).stage is Stage.SUBMITTED, masked.consortium.progress[-1]
    assert killed == 1
    masked.see_mean(masked.room.peers)
    if not (when == "before" and name == "keep_own"):  # secrets that were never kept were never told
        first, *others = given
        assert all(other == first for other in others) or name in {"store", "keep_trained", "keep_metrics"}
    assert len({each.update.digest for each in sent_by(masked, OWN)}) == 1


def sent_by(masked: Round, hospital: str) -> list[UpdateSubmission]:
    found = (UpdateSubmission.model_validate_json(each) for each in masked.consortium.submissions)
    return [each for each in found if each.update.hospital == hospital]


@pytest.mark.parametrize("stage", [Masking.KEYS, Masking.SHARES, Masking.INPUTS, Masking.CONSENT, Masking.REVEAL])
def test_a_round_goes_on_without_one_that_is_gone(consortium: Any, tmp_path: Path, stage: Masking) -> None:
    with secure_round(consortium, tmp_path / "round", {2: {stage}}) as masked:
        assert train(masked).stage is Stage.SUBMITTED
        masked.room.submit()
        assert unmask(masked).stage is Stage.SUBMITTED
        stays = stage in {Masking.CONSENT, Masking.REVEAL}  # its update is there already
        masked.see_mean([each for each in masked.room.peers if stays or each is not masked.room.peers[1]])


def test_groups_have_sums_of_their_own(consortium: Any, tmp_path: Path) -> None:
    secure = SecureAggregation(stage_seconds=5, group=3)
    with secure_round(consortium, tmp_path / "round", peers=6, secure=secure) as masked:
        assert train(masked).stage is Stage.SUBMITTED
        masked.room.submit()
        assert unmask(masked).stage is Stage.SUBMITTED
        assert masked.room.roster is not None
        groups = masking.graph(masked.room.roster).groups
        assert sorted(map(len, groups)) == [3, 4]
        own = next(group for group in groups if masked.room.roster.hospitals.index(OWN) in group)
        told = masked.room.revealed[OWN]
        assert {masked.room.roster.hospitals.index(each) for each in told.seeds} == set(own)


# --------------------------------------------------------------------------------------------- what is not believed


def alter(change: Callable[[MaskingView, Room], MaskingView], *stages: Masking) -> Callable[[Room], None]:
    def put_in(room: Room) -> None:
        room.tell = lambda view: change(view, room) if view.stage in stages else view

    return put_in


def with_roster(change: Callable[[Any, Room], Any]) -> Callable[[Room], None]:
    return alter(
        lambda view, room: view.model_copy(update={"roster": change(view.roster, room)}),
        Masking.SHARES,
        Masking.INPUTS,
    )


def swapped_key(roster: Any, room: Room) -> Any:
    """A key of the aggregator's own in the place of a hospital's."""
    place = 0 if roster.members[0].keys.hospital != OWN else 1
    member, mine = roster.members[place], Peer(99, DOMAIN).keys(room.task).keys
    keys = member.keys.model_copy(update={"masking": mine.masking})
    members = list(roster.members)
    members[place] = member.model_copy(update={"keys": keys})
    return roster.model_copy(update={"members": tuple(members)})


def swapped_own(roster: Any, room: Room) -> Any:
    members = [
        each
        if each.keys.hospital != OWN
        else each.model_copy(update={"keys": each.keys.model_copy(update={"samples": 10**6})})
        for each in roster.members
    ]
    return roster.model_copy(update={"members": tuple(members)})


def another_round(roster: Any, room: Room) -> Any:
    """Keys that a hospital did sign, for another round."""
    peer = room.peers[0]
    signed = peer.keys(room.task.model_copy(update={"round": 2}))
    members = [signed if each.keys.hospital == peer.address else each for each in roster.members]
    return roster.model_copy(update={"members": tuple(members)})


def dropped_parcel(view: MaskingView, _: Room) -> MaskingView:
    return view.model_copy(update={"parcels": view.parcels[1:]})


def spoilt_parcel(view: MaskingView, _: Room) -> MaskingView:
    first = view.parcels[0]
    flipped = ("0" if first.sealed[-1] != "0" else "1").join((first.sealed[:-1], ""))
    return view.model_copy(update={"parcels": (first.model_copy(update={"sealed": flipped}), *view.parcels[1:])})


def without_own_sharer(view: MaskingView, _: Room) -> MaskingView:
    return view.model_copy(update={"sharers": tuple(each for each in view.sharers or () if each != OWN)})


def few_sharers(view: MaskingView, room: Room) -> MaskingView:
    kept = {OWN, room.peers[0].address}
    parcels = tuple(each for each in view.parcels if each.sender in kept)
    return view.model_copy(
        update={"sharers": tuple(each for each in view.sharers or () if each in kept), "parcels": parcels}
    )


UNTRUE = {
    "a member's key was swapped": (with_roster(swapped_key), "not signed"),
    "own keys were changed": (with_roster(swapped_own), "has not this hospital's keys"),
    "a member signed for another round": (with_roster(another_round), "another round"),
    "a lower threshold": (
        with_roster(lambda roster, _: roster.model_copy(update={"threshold": 0.51})),
        "threshold or groups",
    ),
    "the order is another": (
        with_roster(lambda roster, _: roster.model_copy(update={"members": roster.members[::-1]})),
        "order of address",
    ),
    "too few members": (
        with_roster(
            lambda roster, _: roster.model_copy(
                update={"members": tuple(each for each in roster.members if each.keys.hospital == OWN) * 2}
            )
        ),
        "order",
    ),
    "a parcel is missing": (alter(dropped_parcel, Masking.INPUTS), "parcels are not one of each"),
    "a parcel does not open": (alter(spoilt_parcel, Masking.INPUTS), "open"),
    "own shares are left out": (alter(without_own_sharer, Masking.INPUTS), "went on without this hospital"),
    "too few sharers": (alter(few_sharers, Masking.INPUTS), "too few"),
    "the roster changed after shares were made": (
        alter(lambda view, room: view.model_copy(update={"roster": swapped_key(view.roster, room)}), Masking.INPUTS),
        "another roster",
    ),
}


@pytest.mark.parametrize("what", UNTRUE)
def test_a_room_that_does_not_hold_up_gets_no_update(masked: Round, what: str) -> None:
    put_in, words = UNTRUE[what]
    put_in(masked.room)
    ended = train(masked)
    assert (ended.stage, masked.trainer.trained) == (Stage.REFUSED, 0)
    assert words in ended.detail
    assert not sent_by(masked, OWN)
    assert not masked.consortium.upload_lengths


def test_a_member_that_the_ledger_does_not_know_as_a_hospital(masked: Round) -> None:
    masked.consortium.holders -= {masked.room.peers[1].address}
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert (
        f"1 of the roster's 4 members do not hold the hospital role by the ledger, {masked.room.peers[1].address}"
        in (ended.detail)
    )
    assert OWN not in masked.room.shares


def test_another_roster_after_a_restart(masked: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of the same secrets under two rosters would be two sets of holders."""
    kill_at(monkeypatch, Consortium, "share", "before", [])
    with pytest.raises(Killed):
        train(masked)
    members = tuple(each for each in masked.room.keys.values() if each.keys.hospital != masked.room.peers[2].address)
    assert masked.room.roster is not None
    ordered = tuple(sorted(members, key=lambda each: int(each.keys.hospital, 16)))
    masked.room.roster = masked.room.roster.model_copy(update={"members": ordered})
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert "takes no second one" in ended.detail
    assert OWN not in masked.room.shares


def test_who_comes_too_late_says_so(masked: Round) -> None:
    masked.room.close()
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert "keys came too late" in ended.detail


def test_shares_that_come_too_late(masked: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(monkeypatch, Consortium, "share", "before", [])
    with pytest.raises(Killed):
        train(masked)
    masked.room.close()
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert "shares came too late" in ended.detail


@pytest.mark.parametrize(("name", "words"), [("advertise", "keys came too late"), ("share", "shares came too late")])
def test_a_stage_that_ends_at_that_very_moment(
    masked: Round, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    real = getattr(Consortium, name)

    def late(*given: Any) -> None:
        masked.room.close()
        real(*given)

    monkeypatch.setattr(Consortium, name, late)
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert words in ended.detail


def test_a_masking_that_was_given_up(masked: Round) -> None:
    masked.room.stage = Masking.ABORTED
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert "given up" in ended.detail


def test_who_waits_for_others_leaves_its_question_open(masked: Round) -> None:
    never = Peer(50, DOMAIN)
    masked.room.peers.append(never)

    def close() -> None:
        masked.room.peers.remove(never)
        masked.room.close()

    closing = threading.Timer(1.5, close)
    closing.start()
    ended = train(masked)
    closing.join()
    assert ended.stage is Stage.SUBMITTED, ended.detail
    assert masked.consortium.calls.count("view") < 15


def test_a_node_that_is_told_to_end_does_so_while_it_waits(masked: Round) -> None:
    masked.room.peers.append(Peer(50, DOMAIN))  # who never comes
    hospital = masked.hospital()
    threading.Timer(0.5, hospital.stop.set).start()
    with pytest.raises(Stopped):
        masked.consortium.ask(hospital, masked.task)
    masked.room.peers.pop()
    masked.room.close()
    assert train(masked).stage is Stage.SUBMITTED, "it goes on where it was"


def test_a_round_without_a_room(masked: Round) -> None:
    masked.consortium.rooms.clear()
    assert train(masked).stage is Stage.REFUSED


@pytest.mark.parametrize("changes", [{"asynchronous": True}, {"encoding": Encoding.parse("float16")}])
def test_what_cannot_be_masked_is_refused(consortium: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    with secure_round(consortium, tmp_path / "round", **changes) as masked:
        ended = train(masked)
        assert ended.stage is Stage.REFUSED
        assert "cannot be masked" in ended.detail
        assert OWN not in masked.room.keys


def test_more_images_than_the_keys_say(masked: Round) -> None:
    masked.trainer.images = IMAGES + 1
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert "more than this hospital's keys" in ended.detail


# ------------------------------------------------------------------------------------------- one update under its masks


@pytest.mark.parametrize("name", ["store", "submit"])
def test_no_second_update_is_masked_once_one_may_have_left(
    masked: Round, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    masked.trainer.differs = True
    kill_at(monkeypatch, Consortium, name, "before", [])
    with pytest.raises(Killed):
        train(masked)
    folder = masked.folder / "node" / "updates" / JOB / "1"
    (folder / "update.safetensors").unlink()
    (folder / "metrics.json").unlink(missing_ok=True)
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert "masks are for one update alone" in ended.detail
    assert masked.trainer.trained == 1
    assert not (folder / "update.safetensors").exists()


def test_nothing_is_masked_once_an_update_was_sent(masked: Round) -> None:
    """Whoever asks for it, and whatever became of the file."""
    assert train(masked).stage is Stage.SUBMITTED
    hospital = masked.hospital()
    joined = node_masking.joined_before(hospital.folder.masking.of(JOB, 1))
    assert joined is not None
    with pytest.raises(Refused, match="masks are for one update alone"):
        node_masking.write(hospital, masked.task, joined, masked.base, IMAGES)


def test_an_update_that_was_lost_before_it_could_leave_is_made_again(
    masked: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked.trainer.differs = True
    kill_at(monkeypatch, RoundMasking, "keep_sent", "before", [])
    with pytest.raises(Killed):
        train(masked)
    (masked.folder / "node" / "updates" / JOB / "1" / "update.safetensors").unlink()
    assert train(masked).stage is Stage.SUBMITTED
    assert masked.trainer.trained == 2


def test_secrets_are_on_the_disk_before_keys_are_told(masked: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Consortium.advertise

    def looking(*given: Any) -> None:
        assert (masked.folder / "node" / "masking" / JOB / "1" / "secrets.json").exists()
        real(*given)

    monkeypatch.setattr(Consortium, "advertise", looking)
    assert train(masked).stage is Stage.SUBMITTED


def test_secrets_that_cannot_be_read_are_not_made_anew(masked: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(monkeypatch, Consortium, "share", "before", [])
    with pytest.raises(Killed):
        train(masked)
    (masked.folder / "node" / "masking" / JOB / "1" / "secrets.json").write_text("{")
    ended = train(masked)
    assert ended.stage is Stage.REFUSED
    assert "cannot be read" in ended.detail


def test_secrets_go_when_their_round_is_over(masked: Round) -> None:
    train(masked)
    kept = masked.folder / "node" / "masking" / JOB
    assert (kept / "1").is_dir()
    consortium, base = masked.consortium, masked.task.base
    closed = consortium.rounds[JOB, 1].model_copy(update={"status": RoundStatus.CLOSED, "global_digest": base})
    consortium.rounds[JOB, 1] = closed
    evaluation = EvaluateTask(
        job=JOB,
        round=1,
        architecture=masked.task.architecture,
        model=base,
        seed=1,
        image_size=32,
        evaluation=Evaluation(),
    )
    consortium.ask(masked.hospital(), evaluation)
    assert not (kept / "1").exists()


def test_the_next_round_begins_without_the_last_ones_secrets(masked: Round) -> None:
    train(masked)
    consortium, kept = masked.consortium, masked.folder / "node" / "masking" / JOB
    consortium.open_round(JOB, 2, masked.task.base)
    task = masked.task.model_copy(update={"round": 2})
    room = Room(consortium, task, OWN, [Peer(number, DOMAIN) for number in (1, 2, 3)], DOMAIN, masked.folder)
    consortium.rooms[JOB, 2] = room
    hospital = masked.hospital()
    consortium.ask(hospital, task)
    assert masked.ended(hospital).stage is Stage.SUBMITTED
    assert sorted(path.name for path in kept.iterdir()) == ["2"]
    first, second = masked.room.keys[OWN].keys, room.keys[OWN].keys
    assert not {first.sealing, first.masking, first.commitment} & {second.sealing, second.masking, second.commitment}


def test_few_rounds_are_kept_where_nobody_says_that_they_are_over(masked: Round) -> None:
    kept = masked.folder / "node" / "masking"
    for number in range(12):
        path = kept / f"{number:064x}" / "1"
        path.mkdir(parents=True)
        (path / "secrets.json").write_text("{}")
    assert train(masked).stage is Stage.SUBMITTED
    left = sorted(path.parent.parent.name for path in kept.glob("*/*/secrets.json"))
    assert left == [*(f"{number:064x}" for number in range(4, 12)), JOB]


# ------------------------------------------------------------------------------------------------ who is in the sum


def settled(masked: Round) -> UnmaskTask:
    assert train(masked).stage is Stage.SUBMITTED
    masked.room.submit()
    return masked.room.settle()


def other(task: UnmaskTask, **changes: Any) -> UnmaskTask:
    return task.model_copy(update={"survivors": task.survivors.model_copy(update=changes)})


def moved(task: UnmaskTask, room: Room) -> UnmaskTask:
    """One that did send its update is told to have dropped out, so that both its secrets could be had."""
    gone = room.peers[0].address
    left = tuple(each for each in task.survivors.survivors if each != gone)
    return other(task, survivors=left, dropped=(*task.survivors.dropped, gone))


LISTS: dict[str, tuple[Callable[[UnmaskTask, Room], UnmaskTask], str]] = {
    "one that sent its update is said to have dropped out": (moved, "others"),
    "one is left out": (lambda task, _: other(task, survivors=task.survivors.survivors[1:]), "are not those"),
    "another roster": (lambda task, _: other(task, roster="0" * 64), "another roster"),
    "another round": (lambda task, _: other(task, round=2), "another round"),
    "this hospital is left out": (
        lambda task, _: other(
            task,
            survivors=tuple(each for each in task.survivors.survivors if each != OWN),
            dropped=(OWN,),
        ),
        "not among the survivors",
    ),
}


@pytest.mark.parametrize("what", LISTS)
def test_a_list_that_is_not_the_ledgers_is_not_agreed_to(masked: Round, what: str) -> None:
    change, words = LISTS[what]
    task = settled(masked)
    ended = unmask(masked, change(task, masked.room))
    assert ended.stage is Stage.REFUSED
    assert words in ended.detail
    assert OWN not in masked.room.consents
    assert OWN not in masked.room.revealed
    assert unmask(masked, task).stage is Stage.SUBMITTED, "the right one is agreed to still"


def on_ledger(masked: Round, change: Callable[[LedgerUpdate], LedgerUpdate | None], hospital: str) -> None:
    found = masked.consortium.rounds[JOB, 1]
    updates = (change(each) if each.update.hospital == hospital else each for each in found.updates)
    masked.consortium.rounds[JOB, 1] = found.model_copy(update={"updates": tuple(filter(None, updates))})


def of_another_roster(item: LedgerUpdate, peer: Peer, task: Any) -> LedgerUpdate:
    made = submission(peer.account, DOMAIN, task, item.update.digest, item.update.samples, "1" * 64)
    return item.model_copy(update={"update": made.update, "metrics": made.metrics, "signature": made.signature})


def told_of_this_roster(item: LedgerUpdate, peer: Peer, task: Any) -> LedgerUpdate:
    """What the hospital signed is of another roster, and the metrics that are told are not what it signed."""
    return of_another_roster(item, peer, task).model_copy(update={"metrics": item.metrics})


def signed_by_nobody(item: LedgerUpdate, peer: Peer, task: Any) -> LedgerUpdate:
    return item.model_copy(update={"signature": "0x" + "11" * 65})


LEDGERS: dict[str, tuple[Callable[[LedgerUpdate, Peer, Any], LedgerUpdate | None], str]] = {
    "lacks one": (lambda *_: None, "or others"),
    "rejected one": (lambda item, *_: item.model_copy(update={"reason": Reason.MALFORMED_FILE}), "or others"),
    "has one of another roster": (of_another_roster, "not signed by it as masked by this round's roster"),
    "has metrics that nobody signed": (told_of_this_roster, "not signed by it"),
    "has one that nobody signed": (signed_by_nobody, "not signed by it"),
    "lost one's metrics": (lambda item, *_: item.model_copy(update={"metrics": None}), "not signed by it"),
}


@pytest.mark.parametrize("what", LEDGERS)
def test_a_list_is_compared_with_the_ledger(masked: Round, what: str) -> None:
    change, words = LEDGERS[what]
    task, peer = settled(masked), masked.room.peers[0]
    on_ledger(masked, lambda item: change(item, peer, masked.task), peer.address)
    ended = unmask(masked, task)
    assert ended.stage is Stage.REFUSED
    assert words in ended.detail
    assert OWN not in masked.room.consents


def test_an_update_that_is_in_no_sum_is_waited_out(masked: Round) -> None:
    """A hospital that took no part in the masking can submit, too: until it is rejected nothing is agreed to."""
    task, stranger = settled(masked), Peer(77, DOMAIN)
    found, roster = masked.consortium.rounds[JOB, 1], masked.room.roster
    assert roster is not None
    made = submission(stranger.account, DOMAIN, masked.task, "7" * 64, IMAGES, roster.digest())
    late = found.updates[0].model_copy(
        update={"update": made.update, "metrics": made.metrics, "signature": made.signature}
    )
    masked.consortium.rounds[JOB, 1] = found.model_copy(update={"updates": (*found.updates, late)})
    with pytest.raises(Problem) as raised:
        unmask(masked, task)
    assert raised.value.problem_code == "round_not_settled"
    assert OWN not in masked.room.consents
    on_ledger(masked, lambda item: item.model_copy(update={"reason": Reason.MALFORMED_FILE}), stranger.address)
    assert unmask(masked, task).stage is Stage.SUBMITTED


def test_another_update_of_ours_on_the_ledger(masked: Round) -> None:
    """With the hospital's own signature, as a second process with the key would make it."""
    task = settled(masked)
    own = Peer(9, DOMAIN)
    assert own.address == OWN
    assert masked.room.roster is not None
    roster = masked.room.roster.digest()

    def swapped(item: LedgerUpdate) -> LedgerUpdate:
        made = submission(own.account, DOMAIN, masked.task, "7" * 64, IMAGES, roster)
        return item.model_copy(update={"update": made.update, "metrics": made.metrics, "signature": made.signature})

    on_ledger(masked, swapped, OWN)
    ended = unmask(masked, task)
    assert ended.stage is Stage.REFUSED
    assert "another update of this hospital" in ended.detail
    assert OWN not in masked.room.consents


def test_the_ledger_is_asked_for_everybodys_updates(masked: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "concilia_client_node.unmasking.see_ledger",
        lambda found, *others: (asked.append(len(found.updates)), really_see_ledger(found, *others)),
    )
    task = settled(masked)
    assert unmask(masked, task).stage is Stage.SUBMITTED
    assert asked == [4]


def test_a_round_that_is_over_is_not_unmasked(masked: Round) -> None:
    task, found = settled(masked), masked.consortium.rounds[JOB, 1]
    masked.consortium.rounds[JOB, 1] = found.model_copy(update={"status": RoundStatus.ABORTED})
    ended = unmask(masked, task)
    assert ended.stage is Stage.REFUSED
    assert "aborted" in ended.detail


def test_a_merkle_round_is_unmasked_once_it_is_committed(masked: Round) -> None:
    masked.consortium.open_round(JOB, 1, masked.task.base, merkle=True)
    assert train(masked).stage is Stage.SUBMITTED
    masked.room.submit()
    collected = masked.consortium.rounds[JOB, 1]
    masked.consortium.commit(JOB, 1)
    task, committed = masked.room.settle(), masked.consortium.rounds[JOB, 1]
    masked.consortium.rounds[JOB, 1] = collected
    with pytest.raises(Problem) as caught:
        unmask(masked, task)
    assert caught.value.problem_code == "round_not_committed"
    masked.consortium.rounds[JOB, 1] = committed
    assert unmask(masked, task).stage is Stage.SUBMITTED
    masked.see_mean(masked.room.peers)


def test_no_second_sum_of_a_round_is_agreed_to(masked: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the ledger is said to have by then."""
    task = settled(masked)
    kill_at(monkeypatch, Consortium, "consent", "before", [])
    with pytest.raises(Killed):
        unmask(masked, task)
    gone = masked.room.peers[0].address
    on_ledger(masked, lambda _: None, gone)
    ended = unmask(masked, moved(task, masked.room))
    assert ended.stage is Stage.REFUSED
    assert "agrees to no second one" in ended.detail
    assert OWN not in masked.room.consents


@pytest.mark.parametrize("lost", ["*", "sent"])
def test_a_hospital_without_an_update_of_the_round_agrees_to_nothing(masked: Round, lost: str) -> None:
    task = settled(masked)
    for path in (masked.folder / "node" / "masking" / JOB / "1").glob(f"{lost}.json"):
        path.unlink()
    ended = unmask(masked, task)
    assert ended.stage is Stage.REFUSED
    assert "masked no update" in ended.detail


def consents_of(change: Callable[[tuple[Consent, ...], Room], tuple[Consent, ...]]) -> Callable[[Room], None]:
    return alter(lambda view, room: view.model_copy(update={"consents": change(view.consents, room)}), Masking.REVEAL)


def to_another_list(_: tuple[Consent, ...], room: Room) -> tuple[Consent, ...]:
    assert room.survivors is not None
    elsewhere = room.survivors.model_copy(update={"dropped": (room.peers[0].address,)})
    return tuple(each.consent(elsewhere) for each in room.peers)


@pytest.mark.parametrize(
    "change",
    [
        lambda consents, _: consents[:2],
        lambda consents, _: (consents[0],) * 4,
        to_another_list,
        lambda consents, _: tuple(each.model_copy(update={"signature": consents[0].signature}) for each in consents),
    ],
)
def test_nothing_is_revealed_before_enough_agreed_to_the_same(
    masked: Round, change: Callable[[tuple[Consent, ...], Room], tuple[Consent, ...]]
) -> None:
    task = settled(masked)
    consents_of(change)(masked.room)
    ended = unmask(masked, task)
    assert ended.stage is Stage.REFUSED
    assert "agreed to who is in the sum, 3 are needed" in ended.detail
    assert OWN not in masked.room.revealed


def test_another_list_in_the_room_than_was_agreed_to(masked: Round) -> None:
    task = settled(masked)
    alter(lambda view, room: view.model_copy(update={"survivors": moved(task, room).survivors}), Masking.REVEAL)(
        masked.room
    )
    ended = unmask(masked, task)
    assert ended.stage is Stage.REFUSED
    assert "another sum now" in ended.detail


def test_who_was_not_needed_to_agree_reveals_all_the_same(masked: Round) -> None:
    task = settled(masked)
    masked.room.close()
    assert unmask(masked, task).stage is Stage.SUBMITTED
    assert OWN in masked.room.revealed


def test_a_sum_that_was_unmasked_already(masked: Round) -> None:
    task = settled(masked)
    masked.room.stage = Masking.OVER
    ended = unmask(masked, task)
    assert (ended.stage, "already" in ended.detail) == (Stage.SUBMITTED, True)
    assert OWN not in masked.room.revealed


def test_an_unmasking_that_is_too_late(masked: Round) -> None:
    task = settled(masked).model_copy(update={"deadline": 1})
    ended = unmask(masked, task)
    assert ended.stage is Stage.REFUSED
    assert "deadline" in ended.detail


def test_nobody_elses_word_starts_an_unmasking(masked: Round) -> None:
    task, hospital = settled(masked), masked.hospital()
    masked.consortium.coordinates = False
    masked.consortium.ask(hospital, task)
    assert masked.ended(hospital).stage is Stage.REFUSED
    assert OWN not in masked.room.consents


_ADDRESSES = [ACCOUNT.address, *(Peer(number, DOMAIN).address for number in (1, 2, 3))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=st.lists(st.sets(st.sampled_from(_ADDRESSES)), min_size=1, max_size=4))
def test_never_both_secrets_of_one_whatever_lists_come(
    tmp_path_factory: pytest.TempPathFactory, lists: list[set[str]]
) -> None:
    """The state machine by itself: lists come in any order, restarts between them; what is agreed to is one."""
    kept = RoundMasking(tmp_path_factory.mktemp("kept") / "a" / "b")
    agreed: set[Survivors] = set()
    for survivors in lists:
        if not survivors:
            continue
        dropped = set(_ADDRESSES) - survivors
        told = Survivors(
            job=JOB, round=1, roster="0" * 64, survivors=tuple(sorted(survivors)), dropped=tuple(sorted(dropped))
        )
        try:
            kept.keep_agreed(told)
        except Exception:
            assert told not in agreed
        else:
            agreed.add(told)
    assert len(agreed) <= 1
    assert kept.agreed in agreed or not agreed


def test_signatures_are_of_the_documents(masked: Round) -> None:
    train(masked)
    keys = masked.room.keys[OWN]
    assert signing.signer(keys.keys.statement(), DOMAIN, keys.signature) == OWN
    assert keys.keys.samples == IMAGES
    update = masked.masked()
    assert digests.of_json(update.metrics.model_dump(mode="json")) == update.update.metrics

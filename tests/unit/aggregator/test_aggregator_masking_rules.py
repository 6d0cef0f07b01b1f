"""Rooms of secure rounds: a random walk of the worker's moves and hospitals' words against what must never happen."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
from concilia_aggregator import rounds
from concilia_aggregator.masking import rules
from concilia_aggregator.masking.rules import Room
from concilia_aggregator.rounds import Facts, JobState, RoundFacts, decide
from concilia_kit.masking import Secrets, advertise, graph, open_parcels, reconstruct, reveal, share
from concilia_kit.wire.chain import RoundStanding, RoundStatus
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.masking import FEWEST_MEMBERS, Revealed, SecureAggregation, SignedKeys, Stage, Unmasking
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .conftest import address

JOB, BASE = "a" * 64, "0" * 64
MEMBERS = [address(number) for number in range(1, 8)]


def spec(**changes: object) -> JobSpec:
    secure = {"stage_seconds": 10, "threshold": 0.6}
    fields = {"name": "j", "initial": BASE, "quorum": 2, "deadline_seconds": 100, "secure": secure, **changes}
    return JobSpec.model_validate(fields)


@cache
def secrets_of(hospital: str) -> Secrets:
    return Secrets.new()


def keys_of(hospital: str) -> SignedKeys:
    keys = advertise(secrets_of(hospital), hospital=hospital, job=JOB, round_=1, base=BASE, samples=10)
    return SignedKeys(keys=keys, signature="0x00")  # whose it is, rules do not look at


def opened(*members: str, job: JobSpec | None = None) -> Room:
    chosen = {each: keys_of(each) for each in members}
    return rules.close_keys(rules.begin(JOB, 1, 0), job or spec(), chosen, 1)


def shared(*members: str, job: JobSpec | None = None) -> Room:
    return rules.close_shares(opened(*members, job=job), members, 2)


def settled(*members: str, gone: int = 0) -> Room:
    return rules.settle(shared(*members), spec(), members[gone:], 3)


def unmasking_of(room: Room) -> Unmasking:
    """What the survivors' shares come to."""
    roster, survivors = rules.roster_of(room), rules.survivors_of(room)
    parcels = [each for name in room.sharers for each in share(secrets_of(name), roster, name).parcels]
    revealed: list[Revealed] = []
    for name in survivors.survivors:
        own = [each for each in parcels if each.recipient == name]
        held = open_parcels(secrets_of(name), roster, name, room.sharers, own)
        revealed.append(reveal(held, roster, name, survivors))
    return reconstruct(roster, room.sharers, survivors.survivors, revealed, 4.0)


def test_a_roster_needs_the_quorum_three_and_a_whole_group() -> None:
    for members, job in ((2, spec()), (3, spec(quorum=4)), (4, spec(strategy={"name": "median"}, secure={"group": 5}))):
        room = opened(*MEMBERS[:members], job=job)
        assert room.stage is Stage.ABORTED
        assert room.roster is None
    room = opened(*reversed(MEMBERS))
    assert room.stage is Stage.SHARES
    assert rules.roster_of(room).hospitals == tuple(MEMBERS)


def test_who_sends_anothers_key_takes_both_out() -> None:
    copied = keys_of(MEMBERS[0])
    thief = copied.model_copy(update={"keys": copied.keys.model_copy(update={"hospital": MEMBERS[6]})})
    chosen = {each: keys_of(each) for each in MEMBERS[:6]} | {MEMBERS[6]: thief}
    room = rules.close_keys(rules.begin(JOB, 1, 0), spec(), chosen, 1)
    assert rules.roster_of(room).hospitals == tuple(MEMBERS[1:6])


def test_shares_of_too_few_end_the_round() -> None:
    assert rules.close_shares(opened(*MEMBERS[:5]), MEMBERS[:2], 2).stage is Stage.ABORTED
    room = rules.close_shares(opened(*MEMBERS[:5]), [*MEMBERS[:3], "0xstranger"], 2)
    assert (room.stage, room.sharers) == (Stage.INPUTS, tuple(MEMBERS[:3]))


def test_who_is_in_the_sum_is_settled_once() -> None:
    room = settled(*MEMBERS[:5], gone=1)
    assert rules.survivors_of(room).dropped == (MEMBERS[0],)
    assert rules.settle(room, spec(), MEMBERS[:5], 4) is room
    assert rules.settle(shared(*MEMBERS[:5]), spec(), MEMBERS[:2], 4).stage is Stage.ABORTED
    with pytest.raises(ValueError, match="must have been rejected"):
        rules.settle(shared(*MEMBERS[:5]), spec(), MEMBERS[:6], 4)


def test_consents_of_too_few_are_waited_for() -> None:
    room = settled(*MEMBERS[:5], gone=1)
    for few in ((), MEMBERS[1:3], MEMBERS[:3], [*MEMBERS[1:3], MEMBERS[6]]):  # the first is not in the sum
        assert rules.close_consents(room, few, 4) is room
    assert rules.close_consents(room, MEMBERS[1:4], 4).stage is Stage.REVEAL


def test_secrets_of_another_sum_end_no_room() -> None:
    room = rules.close_consents(settled(*MEMBERS[:5]), MEMBERS[:5], 4)
    other = unmasking_of(rules.close_consents(settled(*MEMBERS[:5], gone=1), MEMBERS[:5], 4))
    with pytest.raises(ValueError, match="another sum"):
        rules.close_reveals(room, other, 5)


def test_stages_go_one_way() -> None:
    with pytest.raises(ValueError, match="at shares, not keys"):
        rules.close_keys(opened(*MEMBERS), spec(), {}, 3)
    with pytest.raises(ValueError, match="at inputs, not shares"):
        rules.close_shares(shared(*MEMBERS), MEMBERS, 3)
    with pytest.raises(ValueError, match="not reveal"):
        rules.close_reveals(settled(*MEMBERS), unmasking_of(settled(*MEMBERS)), 3)
    ended = rules.abort(settled(*MEMBERS), "why", 3)
    assert rules.settle(ended, spec(), MEMBERS, 4) is ended


# ------------------------------------------------------------------------------------------------- the job's own moves


def state(phase: Phase = Phase.TRAINING, **changes: object) -> JobState:
    made = JobState(phase, BASE, round=1, deadline=1100, cohort=frozenset(MEMBERS[:5]))
    return replace(made, **changes)  # type: ignore[arg-type]


def ledger(*recorded: str, status: RoundStatus = RoundStatus.OPEN, committed: bool | None = None) -> RoundFacts:
    told = RoundFacts(status, BASE, 1100, frozenset(recorded), len(recorded))
    return told if committed is None else replace(told, merkle=True, committed=committed)


@pytest.mark.parametrize("room", [None, rules.begin(JOB, 1, 0), opened(*MEMBERS[:5])])
def test_no_update_is_waited_for_before_masks_are_agreed_on(room: Room | None) -> None:
    for recorded in ((), MEMBERS[:5]):
        assert isinstance(decide(spec(), state(), Facts(1000, ledger=ledger(*recorded), room=room)), rounds.Wait)


def test_sharers_are_waited_for_and_nobody_else() -> None:
    room = rules.close_shares(opened(*MEMBERS[:5]), MEMBERS[:4], 2)
    waiting = decide(spec(), state(), Facts(1000, frozenset(MEMBERS), ledger(*MEMBERS[:3]), room=room))
    assert waiting == rounds.Wait("1 of 4 hospitals still train")
    assert isinstance(decide(spec(), state(), Facts(1000, ledger=ledger(*MEMBERS[:4]), room=room)), rounds.Unmask)
    late = Facts(1103, frozenset(MEMBERS), ledger(*MEMBERS[:3]), room=room)
    assert isinstance(decide(spec(), state(), late), rounds.Unmask)
    few = Facts(1103, frozenset(MEMBERS), ledger(*MEMBERS[:1]), room=room)
    assert isinstance(decide(spec(), state(), few), rounds.AbortRound)


def test_a_merkle_round_is_committed_before_its_sum_is_settled() -> None:
    room = shared(*MEMBERS[:5])
    facts = Facts(1000, ledger=ledger(*MEMBERS[:5], committed=False), room=room)
    assert isinstance(decide(spec(), state(), facts), rounds.Commit)
    facts = Facts(1000, ledger=ledger(*MEMBERS[:5], committed=True), room=room)
    assert isinstance(decide(spec(), state(), facts), rounds.Unmask)


def test_early_waits_for_sharers() -> None:
    def shown(updates: int) -> RoundStanding:
        return RoundStanding(
            job=JOB,
            round=1,
            status=RoundStatus.OPEN,
            base=BASE,
            deadline=1100,
            quorum=2,
            updates=updates,
            rejected=0,
            merkle=False,
            committed=False,
        )

    room = rules.close_shares(opened(*MEMBERS[:5]), MEMBERS[:4], 2)
    assert rounds.early(spec(), state(), shown(3), 1000, room) == rounds.Wait("1 of 4 hospitals still train")
    assert rounds.early(spec(), state(), shown(4), 1000, room) is None


def test_a_sum_that_was_settled_before_a_crash_is_asked_for_again_and_not_settled_anew() -> None:
    facts = Facts(1000, frozenset(MEMBERS), ledger(*MEMBERS[:2]), room=settled(*MEMBERS[:5], gone=1))
    assert isinstance(decide(spec(), state(), facts), rounds.Unmask)


def test_a_round_is_folded_when_it_is_unmasked_and_given_up_where_it_cannot_be() -> None:
    asked = rounds.unmasking(spec(), state(), MEMBERS[1:5], 1000.5)
    assert (asked.phase, asked.deadline, asked.cohort) == (Phase.UNMASKING, 1020, frozenset(MEMBERS[1:5]))
    room = settled(*MEMBERS[:5], gone=1)
    assert decide(spec(), asked, Facts(1000, room=room, waits="so many")) == rounds.Wait("so many")
    over = rules.close_reveals(rules.close_consents(room, MEMBERS, 4), unmasking_of(room), 5)
    moved = decide(spec(), asked, Facts(1000, room=over))
    assert isinstance(moved, rounds.Enter)
    assert moved.state.phase is Phase.FOLDING
    assert isinstance(decide(spec(), moved.state, Facts(1000, room=over)), rounds.Fold)
    ended = rules.abort(over, "why", 6)
    assert ended.unmasking is None
    for each in (asked, moved.state, state()):
        given_up = decide(spec(), each, Facts(1000, ledger=ledger(*MEMBERS[:5]), room=ended))
        assert isinstance(given_up, rounds.AbortRound)
        assert given_up.state.detail == "round 1: why"


def test_a_job_that_is_stopped_gives_up_what_is_being_unmasked() -> None:
    stopping = state(Phase.UNMASKING, stopping=True)
    facts = Facts(1000, ledger=ledger(*MEMBERS[:5]), room=settled(*MEMBERS[:5]))
    assert isinstance(decide(spec(), stopping, facts), rounds.AbortRound)


# -------------------------------------------------------------------------------------------------------- random walks


class RoomWalk(RuleBasedStateMachine):
    """Hospitals that send what they like, and a worker that may look at any moment, many times, and start anew."""

    @initialize(count=st.integers(2, 7), threshold=st.sampled_from([0.51, 0.6, 2 / 3, 1.0]))
    def begins(self, count: int, threshold: float) -> None:
        self.job = spec(secure={"stage_seconds": 10, "threshold": threshold})
        self.threshold = threshold
        self.cohort = MEMBERS[:count]
        self.now = 0.0
        self.room = rules.begin(JOB, 1, 0)
        self.keys: set[str] = set()
        self.shares: set[str] = set()
        self.consents: set[str] = set()
        self.history = [self.room]

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.room.stage is Stage.KEYS)
    @rule(who=st.integers(0, 6))
    def sends_keys(self, who: int) -> None:
        self.keys.add(self.cohort[who % len(self.cohort)])

    @precondition(lambda self: self.room.stage is Stage.SHARES)
    @rule(who=st.integers(0, 6))
    def hands_out_shares(self, who: int) -> None:
        self.shares.add(self.cohort[who % len(self.cohort)])

    @precondition(lambda self: self.room.stage in {Stage.CONSENT, Stage.REVEAL})
    @rule(who=st.integers(0, 6))
    def agrees(self, who: int) -> None:
        self.consents.add(self.cohort[who % len(self.cohort)])

    @rule(but=st.integers(0, 9))
    def all_do_what_is_asked(self, but: int) -> None:
        """All but one, or all; walks of single steps seldom come to the end."""
        doing = {Stage.KEYS: self.keys, Stage.SHARES: self.shares, Stage.CONSENT: self.consents}
        if self.room.stage in doing:
            doing[self.room.stage] |= {each for at, each in enumerate(self.cohort) if at != but}

    @rule(which=st.sets(st.integers(0, 6)) | st.just(set(range(7))))
    def worker_looks(self, which: set[int]) -> None:
        """What it does at this stage; at INPUTS and after it is told of some updates that were accepted."""
        heard = {Stage.KEYS: self.keys, Stage.SHARES: self.shares}.get(self.room.stage, set())
        is_over = rules.awaited(self.room, self.cohort) <= heard or rules.is_due(self.room, self._secure(), self.now)
        if self.room.stage is Stage.KEYS and is_over:
            self._moved(rules.close_keys(self.room, self.job, {each: keys_of(each) for each in self.keys}, self.now))
        elif self.room.stage is Stage.SHARES and is_over:
            self._moved(rules.close_shares(self.room, self.shares, self.now))
        elif self.room.stage is Stage.CONSENT:
            self._moved(rules.close_consents(self.room, self.consents, self.now))
        elif self.room.stage is Stage.REVEAL:
            self._moved(rules.close_reveals(self.room, unmasking_of(self.room), self.now))
        if self.room.stage not in {Stage.KEYS, Stage.SHARES}:
            accepted = [each for at, each in enumerate(self.room.sharers) if at in which]
            self._moved(rules.settle(self.room, self.job, accepted, self.now))

    @precondition(lambda self: self.room.stage is not Stage.ABORTED)
    @rule(really=st.integers(0, 9))
    def worker_gives_up(self, really: int) -> None:
        if really == 9 or self.room.stage is Stage.OVER:
            self._moved(rules.abort(self.room, "why", self.now))

    @invariant()
    def nothing_is_revealed_below_the_threshold(self) -> None:
        if self.room.stage not in {Stage.REVEAL, Stage.OVER}:
            return
        survivors = rules.survivors_of(self.room)
        needed = math.ceil(round(self.threshold * len(rules.roster_of(self.room).members), 9))
        assert len(self.consents & {*survivors.survivors}) >= needed > len(rules.roster_of(self.room).members) / 2
        assert len(survivors.survivors) >= max(needed, FEWEST_MEMBERS)

    @invariant()
    def what_was_frozen_stays(self) -> None:
        for before, after in zip(self.history, self.history[1:], strict=False):
            order = list(Stage)
            assert order.index(before.stage) <= order.index(after.stage)
            assert before.roster in (None, after.roster)
            assert before.sharers in ((), after.sharers)
            assert before.survivors in (None, after.survivors)

    @invariant()
    def every_sharer_is_in_the_sum_or_was_dropped(self) -> None:
        if self.room.survivors is not None:
            told = self.room.survivors
            assert {*told.survivors}.isdisjoint(told.dropped)
            assert {*told.survivors, *told.dropped} == {*self.room.sharers} <= self.shares <= self.keys | {*MEMBERS}

    @invariant()
    def what_is_given_up_unmasks_nothing(self) -> None:
        assert (self.room.unmasking is not None) == (self.room.stage is Stage.OVER)

    def _moved(self, room: Room) -> None:
        if room.sharers:
            assert not graph(rules.roster_of(room)).is_missing(room.sharers)
        self.room = room
        self.history.append(room)

    def _secure(self) -> SecureAggregation:
        assert self.job.secure is not None
        return self.job.secure


TestRoomWalk = RoomWalk.TestCase
TestRoomWalk.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)

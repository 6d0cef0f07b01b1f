"""When the room of a secure round moves on: pure, what is known in, the room as it is from then on out.

1. KEYS: until all of the cohort have sent keys, or for `stage_seconds`. The roster is of those that did; it needs the
   quorum, three, and one whole group.
2. SHARES: until all of the roster have handed out shares, or for `stage_seconds`. Of every group as many must have as
   the threshold says; these are the sharers, of whom alone masks are made.
3. INPUTS: until `settle` is told whose updates were accepted. These are the survivors, once and for all: the quorum,
   and of every group as many as the threshold says, and three.
4. CONSENT: until as many survivors of every group have agreed. Nobody can be had to agree to two different sums, since
   the threshold is more than half.
5. REVEAL: until shares enough of each secret are there.
6. OVER, or from any stage before ABORTED: what was not revealed by then never is.

A stage never goes back, and nothing that was frozen is frozen again. No clock, disk or network here.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017), figure 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.masking import FEWEST_MEMBERS, Roster, SecureAggregation, SignedKeys, Stage, Survivors, Unmasking

if TYPE_CHECKING:
    from concilia_kit.masking import Graph

UNMASKING_STAGES = 2
"""Stages that are over when a round is unmasked: consent, and reveal."""

ORDER = (Stage.KEYS, Stage.SHARES, Stage.INPUTS, Stage.CONSENT, Stage.REVEAL, Stage.OVER, Stage.ABORTED)
ENDED = frozenset({Stage.OVER, Stage.ABORTED})


@dataclass(frozen=True, slots=True)
class Room:
    """A round's room; `since` is when its stage began (Unix seconds), `detail` why it was given up.

    `roster` from SHARES on, `sharers` from INPUTS on, `survivors` from CONSENT on; `unmasking`, which has the roster
    too, when it is OVER.
    """

    job: str
    round: int
    stage: Stage
    since: float
    roster: Roster | None = None
    sharers: tuple[str, ...] = ()
    survivors: Survivors | None = None
    unmasking: Unmasking | None = None
    detail: str = ""


def begin(job: str, round_: int, now: float) -> Room:
    """A room where nobody has been yet."""
    return Room(job, round_, Stage.KEYS, now)


def fewest(spec: JobSpec) -> int:
    """How many hospitals a round of the job needs to begin."""
    if spec.secure is None:
        return spec.quorum
    return max(spec.quorum, FEWEST_MEMBERS, spec.secure.group or 0)


def awaited(room: Room, cohort: Collection[str]) -> frozenset[str]:
    """Of whom the room waits for something before its stage's time is over; nobody's update at INPUTS, which rounds
    wait for themselves."""
    match room.stage:
        case Stage.KEYS:
            return frozenset(cohort)
        case Stage.SHARES:
            return frozenset(roster_of(room).hospitals)
        case Stage.CONSENT | Stage.REVEAL:
            return frozenset(survivors_of(room).survivors)
        case _:
            return frozenset()


def is_due(room: Room, secure: SecureAggregation, now: float) -> bool:
    """Whether the time of a room's stage is over."""
    return now > room.since + secure.stage_seconds


def close_keys(room: Room, spec: JobSpec, keys: Mapping[str, SignedKeys], now: float) -> Room:
    """From KEYS on: the roster is frozen, or there are too few. `keys` by hospital, each looked at before; hospitals
    that sent the same key are left out, since nobody would mask by a roster that has one twice."""
    _at(room, Stage.KEYS)
    secure = _secure(spec)
    used = Counter(key for each in keys.values() for key in _public(each))
    own = {name: each for name, each in keys.items() if {used[key] for key in _public(each)} == {1}}
    if len(own) < fewest(spec):
        return abort(room, f"{len(own)} hospitals sent keys, {fewest(spec)} needed", now)
    members = tuple(own[each] for each in sorted(own, key=lambda address: int(address, 16)))
    roster = Roster(members=members, threshold=secure.threshold, group=secure.group)
    return replace(room, stage=Stage.SHARES, since=now, roster=roster)


def close_shares(room: Room, shared: Collection[str], now: float) -> Room:
    """From SHARES on: who handed out shares is settled, or of some group there are too few."""
    _at(room, Stage.SHARES)
    roster = roster_of(room)
    sharers = tuple(each for each in roster.hospitals if each in shared)
    if graph_of(roster).is_missing(frozenset(sharers)):
        return abort(room, f"{len(sharers)} of {len(roster.members)} hospitals handed out shares, too few", now)
    return replace(room, stage=Stage.INPUTS, since=now, sharers=sharers)


def settle(room: Room, spec: JobSpec, accepted: Collection[str], now: float) -> Room:
    """Who is in the sum: those whose updates were accepted. A room that has settled it stays as it is, whatever it is
    told: two sums that differ in one hospital's update are that update."""
    if room.survivors is not None or room.stage in ENDED:
        return room
    _at(room, Stage.INPUTS)
    if foreign := set(accepted) - set(room.sharers):
        raise ValueError(f"no sharers, and must have been rejected: {', '.join(sorted(foreign))}")
    roster = roster_of(room)
    survivors = tuple(each for each in room.sharers if each in accepted)
    its = graph_of(roster)
    if len(survivors) < spec.quorum or its.is_missing(survivors) or its.gives_away(survivors):
        detail = f"{len(survivors)} accepted updates of {len(room.sharers)} that masks are made for, too few to unmask"
        return abort(room, detail, now)
    agreed = Survivors(
        job=room.job,
        round=room.round,
        roster=graph_of(roster).digest,
        survivors=survivors,
        dropped=tuple(each for each in room.sharers if each not in accepted),
    )
    return replace(room, stage=Stage.CONSENT, since=now, survivors=agreed)


def close_consents(room: Room, consented: Iterable[str], now: float) -> Room:
    """From CONSENT on, once of every group as many survivors agreed as must."""
    _at(room, Stage.CONSENT)
    agreed = frozenset(consented) & frozenset(survivors_of(room).survivors)
    return room if graph_of(roster_of(room)).is_missing(agreed) else replace(room, stage=Stage.REVEAL, since=now)


def close_reveals(room: Room, unmasking: Unmasking, now: float) -> Room:
    """From REVEAL on: the secrets are known that take the masks off this sum."""
    _at(room, Stage.REVEAL)
    if unmasking.survivors != survivors_of(room).survivors:
        raise ValueError("these secrets are of another sum")
    return replace(room, stage=Stage.OVER, since=now, unmasking=unmasking)


def abort(room: Room, detail: str, now: float) -> Room:
    """A room that is given up: nothing can come of it any more, not even of what was revealed."""
    return replace(room, stage=Stage.ABORTED, since=now, unmasking=None, detail=detail)


def words(room: Room, cohort: Collection[str], heard: int) -> str:
    """What is waited for, for people; `heard`: how many were heard of at this stage."""
    everybody = len(awaited(room, cohort))
    doing = {
        Stage.KEYS: "sent keys to mask by",
        Stage.SHARES: "handed out shares of their masks",
        Stage.CONSENT: "agreed to who is in the sum",
        Stage.REVEAL: "revealed what unmasks the sum",
    }
    return f"{heard} of {everybody} hospitals {doing[room.stage]}" if room.stage in doing else room.stage.value


def graph_of(roster: Roster) -> Graph:
    """The roster's groups and graph. Raises `MaskingError`."""
    from concilia_kit.masking import graph  # and NumPy with it, which an API needs for nothing else

    return graph(roster)


def roster_of(room: Room) -> Roster:
    """The roster of a room that has one. Raises `ValueError`."""
    if room.unmasking is not None:
        return room.unmasking.roster
    if room.roster is None:
        raise ValueError(f"a room at {room.stage} has no roster")
    return room.roster


def survivors_of(room: Room) -> Survivors:
    """The survivors of a room that has settled them. Raises `ValueError`."""
    if room.survivors is None:
        raise ValueError(f"a room at {room.stage} has no survivors")
    return room.survivors


def _public(signed: SignedKeys) -> tuple[str, ...]:
    return signed.keys.sealing, signed.keys.masking, signed.keys.commitment


def _secure(spec: JobSpec) -> SecureAggregation:
    if spec.secure is None:
        raise ValueError("the job is none whose aggregator sees sums only")
    return spec.secure


def _at(room: Room, stage: Stage) -> None:
    if room.stage is not stage:
        raise ValueError(f"the room is at {room.stage}, not {stage}")

"""What the worker does in secure rounds' rooms: moves them on as far as they can be, by what hospitals left there.

Every move is one write, and refused where another worker was faster; what a crash left undone the next look does.
"""

from __future__ import annotations

from typing import NamedTuple

from concilia_kit import logs
from concilia_kit.masking import MaskingError, is_enough, reconstruct
from concilia_kit.wire.chain import LedgerRound
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.masking import Revealed, SecureAggregation, SignedKeys, Stage, Unmasking

from concilia_aggregator.masking import rules
from concilia_aggregator.masking.rooms import Kind, Rooms
from concilia_aggregator.masking.rules import Room, roster_of, survivors_of
from concilia_aggregator.masking.screening import Sharers
from concilia_aggregator.rounds import JobState
from concilia_aggregator.store import StaleState

_KINDS = {
    Stage.KEYS: Kind.KEYS,
    Stage.SHARES: Kind.SHARES,
    Stage.CONSENT: Kind.CONSENT,
    Stage.REVEAL: Kind.REVEAL,
}
_MOVED_IN = {
    Phase.TRAINING: frozenset({Stage.KEYS, Stage.SHARES}),
    Phase.UNMASKING: frozenset({Stage.CONSENT, Stage.REVEAL}),
}
_WITH_ROOM = frozenset({Phase.TRAINING, Phase.UNMASKING, Phase.FOLDING})

_log = logs.get(__name__)


class Seen(NamedTuple):
    """A round's room, None where there is none, and what it waits for, for people."""

    room: Room | None = None
    waits: str = ""


NOTHING = Seen()


class Masking:
    """Rooms as the worker moves them. Used by one thread at a time; `StaleState` is raised where another worker moved a
    room meanwhile."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def look(self, job: str, spec: JobSpec, state: JobState, now: float) -> Seen:
        """A job's room, after every move that can be made now. Raises `StaleState`."""
        if spec.secure is None or state.phase not in _WITH_ROOM:
            return NOTHING
        while True:
            room = self._rooms.get(job, state.round)
            if room is None or room.stage not in _MOVED_IN.get(state.phase, frozenset()):
                return Seen(room)
            awaited = rules.awaited(room, state.cohort)
            heard = self._rooms.senders(_KINDS[room.stage], job, state.round) & awaited
            moved = self._moved(room, spec, state, heard, now)
            if moved is room:
                return Seen(room, rules.words(room, state.cohort, len(heard)))
            self._move(room, moved)

    def settle(self, room: Room, spec: JobSpec, screened: LedgerRound, now: float) -> Room:
        """Fix who is in a round's sum: those whose updates are accepted after screening; or give the room up, where
        they are too few. Raises `StaleState`."""
        settled = rules.settle(room, spec, [item.update.hospital for item in screened.accepted()], now)
        self._move(room, settled)
        return settled

    def give_up(self, room: Room, detail: str, now: float) -> None:
        """Nothing is to come of a round. Raises `StaleState`."""
        self._move(room, rules.abort(room, detail, now))

    def _moved(self, room: Room, spec: JobSpec, state: JobState, heard: frozenset[str], now: float) -> Room:
        secure = _secure(spec)
        is_everybody = rules.awaited(room, state.cohort) <= heard
        if room.stage is Stage.REVEAL and self._is_enough(room, heard):
            moved = self._revealed(room, secure, now)
            if moved is not room:
                return moved
            if is_everybody:
                return rules.abort(room, "what all hospitals revealed does not unmask their sum", now)
        if room.stage is Stage.CONSENT and (moved := rules.close_consents(room, heard, now)) is not room:
            return moved
        if state.deadline is not None and now > state.deadline:
            return rules.abort(room, f"{rules.words(room, state.cohort, len(heard))} in time, too few", now)
        if room.stage in _MOVED_IN[Phase.UNMASKING] or not (is_everybody or rules.is_due(room, secure, now)):
            return room
        if room.stage is Stage.SHARES:
            return rules.close_shares(room, heard, now)
        left = self._rooms.messages(Kind.KEYS, room.job, room.round)
        keys = {name: SignedKeys.model_validate(each) for name, each in left.items() if name in heard}
        return rules.close_keys(room, spec, keys, now)

    def _is_enough(self, room: Room, heard: frozenset[str]) -> bool:
        return is_enough(roster_of(room), room.sharers, survivors_of(room).survivors, heard)

    def _revealed(self, room: Room, secure: SecureAggregation, now: float) -> Room:
        """The room with what unmasks its sum, or the same one where what was revealed does not fit: others may come."""
        left = self._rooms.messages(Kind.REVEAL, room.job, room.round)
        revealed = [Revealed.model_validate(left[each]) for each in sorted(left)]
        survivors = survivors_of(room).survivors
        try:
            unmasking: Unmasking = reconstruct(roster_of(room), room.sharers, survivors, revealed, secure.bound)
        except MaskingError as error:
            _log.warning("not unmasked yet", job=room.job, round=room.round, reason=str(error))
            return room
        return rules.close_reveals(room, unmasking, now)

    def _move(self, before: Room, after: Room) -> None:
        if not self._rooms.move(before, after):
            raise StaleState(before.job)
        if after is not before:
            _log.info("room moved", job=after.job, round=after.round, stage=after.stage.value, detail=after.detail)


def fault(room: Room, screened: LedgerRound) -> str | None:
    """Why a round cannot be folded, or None: its room has no secrets of just this sum."""
    accepted = {item.update.hospital for item in screened.accepted()}
    if room.unmasking is None or accepted != {*room.unmasking.survivors}:
        return f"{len(accepted)} accepted updates are others than were unmasked"
    return None


def sharers(room: Room | None, spec: JobSpec) -> Sharers | None:
    """Whose updates screening takes of a secure round; None of any other. Raises `ValueError`."""
    return None if room is None else Sharers.of(room, _secure(spec))


def _secure(spec: JobSpec) -> SecureAggregation:
    if spec.secure is None:
        raise ValueError("the job's rounds have no rooms")
    return spec.secure

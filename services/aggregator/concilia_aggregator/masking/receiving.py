"""What hospitals' nodes leave in a round's room, looked at before it is kept, and what each is told of it.

Whatever other nodes would refuse is refused here already, so that one hospital's broken message ends nobody else's
round. Nobody trusts this service to do so: each node checks again for itself.
"""

from __future__ import annotations

from collections.abc import Callable

from concilia_kit import digests, signing
from concilia_kit.signing import Domain, Statement
from concilia_kit.wire.jobs import Phase
from concilia_kit.wire.masking import (
    Consent,
    MaskingView,
    Parcel,
    Revealed,
    Shares,
    SignedKeys,
    Stage,
)
from pydantic import JsonValue

from concilia_aggregator.errors import (
    MaskingConflict,
    MaskingInvalid,
    MaskingNotReady,
    MaskingStageOver,
    RoundNotFound,
)
from concilia_aggregator.masking.rooms import Kind, Taken
from concilia_aggregator.masking.rules import ORDER, Room, graph_of, roster_of, survivors_of
from concilia_aggregator.store import Store, state_of
from concilia_aggregator.watching import Watch

_STAGES = {
    Kind.KEYS: {Stage.KEYS},
    Kind.SHARES: {Stage.SHARES},
    Kind.CONSENT: {Stage.CONSENT, Stage.REVEAL},
    Kind.REVEAL: {Stage.REVEAL},
}
"""When a message is taken: a consent also while others reveal, who may be too few by themselves."""


class Receiving:
    """Takes messages and tells rooms. `domain`: where hospitals' signatures are valid, raises `Problem` where that is
    not to be had yet. What raises `RoundNotFound` does so too where the round is not secure."""

    def __init__(self, store: Store, domain: Callable[[], Domain]) -> None:
        self._store = store
        self._rooms = store.masking
        self._domain = domain
        self._watch = Watch(self._rooms.stages)

    async def wait(self, job: str, round_: int, known: str, seconds: float) -> None:
        """Come back once a room is at another stage than the one that is known, or after so many seconds. Raises
        `JobNotFound`, `RoundNotFound`."""

        def tell(stages: dict[tuple[str, int], Stage]) -> str:
            return stages.get((job, round_)) or self._room(job, round_).stage

        await self._watch.news(tell, lambda stage: stage == known, seconds)

    def view(self, job: str, round_: int, hospital: str) -> MaskingView:
        """What a room is to one hospital now: what it needs at the stage, and nothing before. Raises `JobNotFound`,
        `RoundNotFound`."""
        room = self._room(job, round_)
        stage = room.stage
        if stage is Stage.SHARES:
            return MaskingView(stage=stage, roster=room.roster)
        if stage is Stage.INPUTS:
            left = self._rooms.parcels(job, round_, hospital)
            parcels = tuple(left[each] for each in room.sharers if each in left)
            return MaskingView(stage=stage, roster=room.roster, sharers=room.sharers, parcels=parcels)
        if stage in {Stage.CONSENT, Stage.REVEAL}:
            consents = self._consents(room, hospital) if stage is Stage.REVEAL else ()
            return MaskingView(stage=stage, survivors=room.survivors, consents=consents)
        return MaskingView(stage=stage)

    def keys(self, job: str, round_: int, hospital: str, message: SignedKeys) -> None:
        """Take a hospital's keys. Raises as all of these do: `JobNotFound`, `RoundNotFound`, `MaskingConflict` where it
        left others, `MaskingStageOver`, `MaskingNotReady`, `MaskingInvalid`, and `Problem`."""
        from concilia_kit.masking import MaskingError, check_points

        room, document = self._room(job, round_), message.model_dump(mode="json")
        if self._is_there(Kind.KEYS, room, hospital, document):
            return
        state = state_of(self._store.job(job))
        if state.phase is not Phase.TRAINING or state.round != round_ or hospital not in state.cohort:
            raise MaskingStageOver("the round was begun without this hospital")
        keys, row = message.keys, self._store.round(job, round_)
        if (keys.hospital, keys.job, keys.round, keys.base) != (hospital, job, round_, row and row.base):
            raise MaskingInvalid("the keys are of another hospital, job, round or base")
        if keys.samples > self._store.training_images([hospital]).get(hospital, keys.samples):
            raise MaskingInvalid("the keys weigh more samples than the hospital's node registered")
        if len({keys.sealing, keys.masking, keys.commitment}) != 3:
            raise MaskingInvalid("one key cannot be for two things")
        try:
            check_points(keys)
        except MaskingError as error:
            raise MaskingInvalid(str(error)) from error
        self._signed(keys.statement(), message.signature, hospital)
        self._add(Kind.KEYS, room, hospital, document)

    def shares(self, job: str, round_: int, hospital: str, message: Shares) -> None:
        """Take a hospital's parcels, one for each that holds shares of its secrets. Raises as `keys`."""
        room, digest = self._room(job, round_), digests.of_json(message.model_dump(mode="json"))
        if self._is_there(Kind.SHARES, room, hospital, digest):
            return
        graph = graph_of(roster_of(room))
        if (place := graph.index.get(hospital)) is None:
            raise MaskingStageOver("the roster was closed without this hospital's keys")
        hospitals = roster_of(room).hospitals
        wanted = sorted(hospitals[each] for each in graph.holders(place) - {place})
        if message.roster != graph.digest:
            raise MaskingInvalid("the shares are of another roster")
        if sorted(each.recipient for each in message.parcels) != wanted:
            raise MaskingInvalid("there must be one parcel for each hospital that holds shares, and no other")
        if any(each.sender != hospital for each in message.parcels):
            raise MaskingInvalid("a parcel names another sender")
        self._add(Kind.SHARES, room, hospital, digest, message.parcels)

    def consent(self, job: str, round_: int, hospital: str, message: Consent) -> None:
        """Take a hospital's word that it agrees to who is in the sum. Raises as `keys`."""
        room, document = self._room(job, round_), message.model_dump(mode="json")
        if self._is_there(Kind.CONSENT, room, hospital, document):
            return
        survivors = survivors_of(room)
        if message.hospital != hospital:
            raise MaskingInvalid("the consent is another hospital's")
        if hospital not in survivors.survivors:
            raise MaskingStageOver("the round goes on without this hospital's update")
        self._signed(survivors.statement(), message.signature, hospital)
        self._add(Kind.CONSENT, room, hospital, document)

    def reveal(self, job: str, round_: int, hospital: str, message: Revealed) -> None:
        """Take what a hospital reveals: of whom is in the sum and whose shares it holds, shares of the self-mask's
        seed, of the others, of the masking key's. Raises as `keys`."""
        from concilia_kit.masking import MaskingError
        from concilia_kit.masking.unmasking import check_revealed

        room, document = self._room(job, round_), message.model_dump(mode="json")
        if self._is_there(Kind.REVEAL, room, hospital, document):
            return
        survivors, roster = survivors_of(room), roster_of(room)
        if message.hospital != hospital:
            raise MaskingInvalid("the shares are another hospital's")
        if hospital not in survivors.survivors:
            raise MaskingStageOver("the round goes on without this hospital's update")
        try:
            check_revealed(roster, room.sharers, survivors.survivors, message)
        except MaskingError as error:
            raise MaskingInvalid(str(error)) from error
        self._add(Kind.REVEAL, room, hospital, document)

    def _room(self, job: str, round_: int) -> Room:
        room = self._rooms.get(job, round_)
        if room is None:
            self._store.require(job)
            raise RoundNotFound(f"the job has no round {round_} with masks")
        return room

    def _consents(self, room: Room, hospital: str) -> tuple[Consent, ...]:
        """Who agreed of a hospital's own group; of others it needs to know nothing."""
        roster = roster_of(room)
        graph = graph_of(roster)
        if (place := graph.index.get(hospital)) is None:
            return ()
        own = [roster.hospitals[each] for each in graph.groups[graph.group_of[place]]]
        known = self._rooms.messages(Kind.CONSENT, room.job, room.round)
        return tuple(Consent.model_validate(known[each]) for each in own if each in known)

    def _is_there(self, kind: Kind, room: Room, hospital: str, document: JsonValue) -> bool:
        """Whether a message came before, word for word; else whether it may come now."""
        known = self._rooms.message(kind, room.job, room.round, hospital)
        if known is not None:
            if known != document:
                raise MaskingConflict(f"the hospital left other {kind}, which do not change")
            return True
        if room.stage in _STAGES[kind]:
            return False
        if ORDER.index(room.stage) > max(map(ORDER.index, _STAGES[kind])):
            raise MaskingStageOver(f"the round's masking is at '{room.stage}', {kind} come too late")
        raise MaskingNotReady(f"the round's masking is at '{room.stage}', {kind} come too early")

    def _signed(self, statement: Statement, signature: str, hospital: str) -> None:
        try:
            by = signing.signer(statement, self._domain(), signature)
        except ValueError as error:
            raise MaskingInvalid(str(error)) from error
        if by != hospital:
            raise MaskingInvalid("the signature is not the hospital's")

    def _add(
        self, kind: Kind, room: Room, hospital: str, document: JsonValue, parcels: tuple[Parcel, ...] = ()
    ) -> None:
        try:
            self._rooms.add(kind, room.job, room.round, hospital, document, parcels)
        except Taken:  # twice at one moment
            self._is_there(kind, room, hospital, document)

"""The room of a secure round in memory behind real HTTP, with the aggregator's answers, and other hospitals in it whose
nodes do their part at once. What a test has them do otherwise is what the node that is tested must stand."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from concilia_kit import digests, masking, signing
from concilia_kit.masking import Held, Secrets
from concilia_kit.masking.participant import check_shares
from concilia_kit.masking.stream import apply
from concilia_kit.masking.words import Scale, floating
from concilia_kit.problems import Conflict, NotFound, Unprocessable
from concilia_kit.signing import Domain, Update
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import UpdateSubmission
from concilia_kit.wire.masking import (
    Consent,
    Masked,
    MaskingView,
    Parcel,
    Revealed,
    Roster,
    SecureAggregation,
    Shares,
    SignedKeys,
    Stage,
    Survivors,
    Unmasking,
)
from concilia_kit.wire.training import TrainTask, UnmaskTask, UpdateMetrics
from eth_account import Account
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

ORDER = tuple(Stage)
STEP = np.float32(0.25)
"""What other hospitals' training adds to each number."""


class Peer:
    """Another hospital's node. `gone` are the stages at which it is not there."""

    def __init__(self, number: int, domain: Domain, gone: Collection[Stage] = ()) -> None:
        self.account: LocalAccount = Account.from_key("0x" + f"{number:064x}")
        self.address: str = self.account.address
        self.domain = domain
        self.gone = frozenset(gone)
        self.secrets = Secrets.new()
        self.held: Held | None = None
        self.samples = 10 * number

    def keys(self, task: TrainTask) -> SignedKeys:
        keys = masking.advertise(
            self.secrets, hospital=self.address, job=task.job, round_=task.round, base=task.base, samples=self.samples
        )
        return SignedKeys(keys=keys, signature=signing.sign(keys.statement(), self.domain, self.account))

    def update(self, roster: Roster, task: TrainTask, base: Path, path: Path, sharers: tuple[str, ...]) -> Any:
        """The submission of a masked update that is written to `path`."""
        assert task.secure is not None
        file = TensorFile.open(base)
        trained = {name: file.tensor(name) + STEP.astype(file.tensor(name).dtype) for name in file}
        masks = masking.masks(self.secrets, roster, self.address, sharers)
        written = masking.write(
            path, trained, file, masks, roster, samples=self.samples, bound=task.secure.bound, norm=task.secure.norm
        )
        return submission(self.account, self.domain, task, written.digest, self.samples, roster.digest())

    def consent(self, survivors: Survivors) -> Consent:
        return Consent(hospital=self.address, signature=signing.sign(survivors.statement(), self.domain, self.account))


def submission(
    account: LocalAccount, domain: Domain, task: TrainTask, digest: str, samples: int, roster: str
) -> UpdateSubmission:
    numbers = dict.fromkeys(("loss", "accuracy", "seconds_download", "seconds_training", "seconds_upload"), 0.0)
    counts = dict.fromkeys(("skipped_images", "epochs", "bytes_download", "bytes_upload"), 1)
    metrics = UpdateMetrics(
        **numbers, **counts, images=samples, lesions=samples, masked=Masked(roster=roster, clipped=0)
    )
    update = Update(
        hospital=account.address,
        job=task.job,
        round=task.round,
        base=task.base,
        digest=digest,
        samples=samples,
        metrics=digests.of_json(metrics.model_dump(mode="json")),
    )
    return UpdateSubmission(update=update, metrics=metrics, signature=signing.sign(update, domain, account))


@dataclass
class Room:
    """The room of one round. It moves on by itself once all of `cohort` that are awaited were heard of, and where
    `close` is called without the others. `tell` changes what is told, as an aggregator may that is not to be trusted.
    """

    double: Any
    task: TrainTask
    own: str
    peers: list[Peer]
    domain: Domain
    folder: Path
    stage: Stage = Stage.KEYS
    keys: dict[str, SignedKeys] = field(default_factory=dict)
    roster: Roster | None = None
    shares: dict[str, Shares] = field(default_factory=dict)
    sharers: tuple[str, ...] = ()
    survivors: Survivors | None = None
    consents: dict[str, Consent] = field(default_factory=dict)
    revealed: dict[str, Revealed] = field(default_factory=dict)
    tell: Callable[[MaskingView], MaskingView] = lambda view: view
    taken: list[str] = field(default_factory=list)
    unmasking: Unmasking | None = None

    def __post_init__(self) -> None:
        for peer in self.there(Stage.KEYS):
            self.keys[peer.address] = peer.keys(self.task)

    # ------------------------------------------------------------------------------------------------- what it goes by

    @property
    def secure(self) -> SecureAggregation:
        assert self.task.secure is not None
        return self.task.secure

    def close(self) -> None:
        """The stage's time is over."""
        if self.stage is Stage.KEYS:
            members = tuple(self.keys[each] for each in sorted(self.keys, key=lambda address: int(address, 16)))
            self.roster = Roster(members=members, threshold=self.secure.threshold, group=self.secure.group)
            self.stage = Stage.SHARES
            for peer in self.there(Stage.SHARES):
                self.shares[peer.address] = masking.share(peer.secrets, self.roster, peer.address)
        elif self.stage is Stage.SHARES:
            assert self.roster is not None
            self.sharers = tuple(each for each in self.roster.hospitals if each in self.shares)
            self.stage = Stage.INPUTS if not masking.graph(self.roster).is_missing(self.sharers) else Stage.ABORTED
            for peer in self.there(Stage.INPUTS) if self.stage is Stage.INPUTS else ():
                peer.held = masking.open_parcels(
                    peer.secrets, self.roster, peer.address, self.sharers, self._parcels(peer.address)
                )
        elif self.stage is Stage.CONSENT:
            self.stage = Stage.REVEAL
            for peer in self.there(Stage.REVEAL):
                assert self.survivors is not None
                assert self.roster is not None
                assert peer.held is not None
                self.revealed[peer.address] = masking.reveal(peer.held, self.roster, peer.address, self.survivors)

    def submit(self) -> None:
        """Have the others' masked updates on the ledger, and in the store."""
        assert self.roster is not None
        base = self.folder / "base"
        base.write_bytes(self.double.artifacts[self.task.base])
        for peer in self.there(Stage.INPUTS):
            path = self.folder / peer.address
            self.double.take(peer.update(self.roster, self.task, base, path, self.sharers))
            self.double.keep(path.read_bytes())

    def settle(self) -> UnmaskTask:
        """Who is in the sum is who the ledger has; the task that asks for its unmasking."""
        assert self.roster is not None
        accepted = {item.update.hospital for item in self.double.rounds[self.task.job, self.task.round].accepted()}
        self.survivors = Survivors(
            job=self.task.job,
            round=self.task.round,
            roster=self.roster.digest(),
            survivors=tuple(each for each in self.sharers if each in accepted),
            dropped=tuple(each for each in self.sharers if each not in accepted),
        )
        self.stage = Stage.CONSENT
        for peer in self.there(Stage.CONSENT):
            self.consents[peer.address] = peer.consent(self.survivors)
        return UnmaskTask(
            job=self.task.job, round=self.task.round, deadline=self.task.deadline, survivors=self.survivors
        )

    def mean(self) -> dict[str, np.ndarray[Any, Any]]:
        """The survivors' mean model, unmasked by what they revealed."""
        assert self.roster is not None
        assert self.survivors is not None
        found = masking.reconstruct(
            self.roster, self.sharers, self.survivors.survivors, self.revealed.values(), self.secure.bound
        )
        self.unmasking = found
        masking.check_unmasking(found, self.domain)
        base = TensorFile.open(self.folder / "base")
        accepted = {item.update.hospital: item for item in self.double.rounds[self.task.job, 1].accepted()}
        samples, means, begin = 0, {}, 0
        files = []
        for hospital in self.survivors.survivors:
            path = self.folder / f"sum-{hospital}"
            path.write_bytes(self.double.artifacts[accepted[hospital].update.digest])
            files.append(TensorFile.open(path))
            samples += accepted[hospital].update.samples
        scale = Scale.of(self.roster, self.secure.bound, base)
        for name in floating(base):
            words = np.zeros(base.flat(name).size, np.int32)
            with np.errstate(over="ignore"):
                for file in files:
                    words += file.flat(name)
            apply(words, begin, masking.total_masks(found, 0), off=True)
            begin += words.size
            means[name] = scale.decode(name, words, samples, base.flat(name)).reshape(base.tensor(name).shape)
        return means

    def there(self, stage: Stage) -> list[Peer]:
        """The other hospitals whose nodes are there at a stage, and are to be."""
        here = [each for each in self.peers if all(ORDER.index(gone) > ORDER.index(stage) for gone in each.gone)]
        if ORDER.index(stage) > ORDER.index(Stage.INPUTS) and self.survivors is not None:
            here = [each for each in here if each.address in self.survivors.survivors]
        return here

    def _parcels(self, hospital: str) -> tuple[Parcel, ...]:
        shared = (each for address, each in self.shares.items() if address in self.sharers)
        return tuple(each for shares in shared for each in shares.parcels if each.recipient == hospital)

    # -------------------------------------------------------------------------------------------------- what is told

    def view(self, hospital: str) -> MaskingView:
        view = MaskingView(stage=self.stage)
        if self.stage in {Stage.SHARES, Stage.INPUTS}:
            view = view.model_copy(update={"roster": self.roster})
        if self.stage is Stage.INPUTS:
            view = view.model_copy(update={"sharers": self.sharers, "parcels": self._parcels(hospital)})
        if self.stage in {Stage.CONSENT, Stage.REVEAL}:
            view = view.model_copy(update={"survivors": self.survivors})
        if self.stage is Stage.REVEAL:
            view = view.model_copy(update={"consents": tuple(self.consents.values())})
        return self.tell(view)

    def put(self, kind: str, at: Collection[Stage], kept: dict[str, Any], address: str, message: Any) -> None:
        """Take a message as the aggregator does: the same again is fine, others and late or early ones are refused."""
        self.taken.append(kind)
        if address in kept:
            if kept[address] != message:
                raise Conflict(f"the hospital left other {kind}", code="masking_conflict")
            return
        places = sorted(map(ORDER.index, at))
        if ORDER.index(self.stage) < places[0]:
            raise Conflict("too early", code="masking_not_ready")
        if ORDER.index(self.stage) > places[-1]:
            raise Conflict("too late", code="masking_stage_over")
        kept[address] = message


def mount(app: FastAPI, double: Any, enter: Callable[[str, Request], str]) -> None:
    """The routes of the rooms that a consortium has. `enter` counts a call, fails it where it is to fail, and says who
    calls."""
    path = "/v1/jobs/{job}/rounds/{number}/masking"

    def room_of(job: str, number: int) -> Room:
        if (found := double.rooms.get((job, number))) is None:
            raise NotFound("no round with masks", code="round_not_found")
        room: Room = found
        return room

    @app.get(path)
    def show(job: str, number: int, request: Request, wait: int = 0) -> Response:
        hospital, known = enter("view", request), request.headers.get("if-none-match", "")
        room, until = room_of(job, number), time.monotonic() + min(wait, 0.3)
        while known == f'W/"{room.stage}"' and time.monotonic() < until:
            time.sleep(0.02)
        headers = {"ETag": f'W/"{room.stage}"'}
        if known == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return JSONResponse(room.view(hospital).model_dump(mode="json"), headers=headers)

    @app.put(path + "/keys/{address}", status_code=204)
    def keys(job: str, number: int, address: str, message: SignedKeys, request: Request) -> None:
        room = room_of(job, number)
        _see(address == enter("keys", request) == message.keys.hospital)
        _see(signing.signer(message.keys.statement(), room.domain, message.signature) == address)
        room.put("keys", {Stage.KEYS}, room.keys, address, message)
        if room.stage is Stage.KEYS and len(room.keys) > len(room.there(Stage.KEYS)):
            room.close()

    @app.put(path + "/shares/{address}", status_code=204)
    def shares(job: str, number: int, address: str, message: Shares, request: Request) -> None:
        room = room_of(job, number)
        _see(address == enter("shares", request))
        room.put("shares", {Stage.SHARES}, room.shares, address, message)
        assert room.roster is not None
        check_shares(room.roster, address, message)
        if room.stage is Stage.SHARES and len(room.shares) > len(room.there(Stage.SHARES)):
            room.close()

    @app.put(path + "/consents/{address}", status_code=204)
    def consents(job: str, number: int, address: str, message: Consent, request: Request) -> None:
        room = room_of(job, number)
        _see(address == enter("consents", request) == message.hospital)
        room.put("consents", {Stage.CONSENT, Stage.REVEAL}, room.consents, address, message)
        if room.stage is Stage.CONSENT:
            room.close()

    @app.put(path + "/reveals/{address}", status_code=204)
    def reveals(job: str, number: int, address: str, message: Revealed, request: Request) -> None:
        room = room_of(job, number)
        _see(address == enter("reveals", request) == message.hospital)
        room.put("reveals", {Stage.REVEAL}, room.revealed, address, message)


def _see(fits: bool) -> None:
    if not fits:
        raise Unprocessable("does not fit", code="masking_invalid")

"""Hospitals and aggregator of a round with secure aggregation, and of a plain one, in this process, each timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from concilia_aggregator.folding import Recipe, fold
from concilia_kit import masking, signing, tensorfile
from concilia_kit.masking import Held, Secrets
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.base import Wire
from concilia_kit.wire.masking import (
    Consent,
    MaskingView,
    Parcel,
    Revealed,
    Roster,
    SecureAggregation,
    SignedKeys,
    Stage,
    Survivors,
)
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Architecture
from eth_account import Account
from eth_account.signers.local import LocalAccount

from benchmarks.peers.payload import STEP, shapes

SECURE = SecureAggregation()

_JOB, _BASE, _SAMPLES = "1" * 64, "2" * 64, 100
_DOMAIN = signing.Domain(chain_id=31337, contract="0x" + "11" * 20)

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass
class Clock:
    """Seconds and CPU seconds that went by while it was on."""

    seconds: float = 0.0
    cpu: float = 0.0
    _begun: tuple[float, float] = (0.0, 0.0)

    def __enter__(self) -> Self:
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun[0]
        self.cpu += time.process_time() - self._begun[1]


@dataclass
class Hospital:
    """One hospital's node, what its part takes and how many bytes it sends and is sent."""

    account: LocalAccount
    clock: Clock = field(default_factory=Clock)
    sent: int = 0
    received: int = 0
    secrets: Secrets | None = None
    signed: SignedKeys | None = None
    held: Held | None = None

    @property
    def address(self) -> str:
        """Its own."""
        return str(self.account.address)

    def keys(self) -> SignedKeys:
        """KEYS."""
        with self.clock:
            self.secrets = Secrets.new()
            keys = masking.advertise(
                self.secrets, hospital=self.address, job=_JOB, round_=1, base=_BASE, samples=_SAMPLES
            )
            signature = signing.sign(keys.statement(), _DOMAIN, self.account)
            self.signed = SignedKeys(keys=keys, signature=signature)
        self.sent += _size(self.signed)
        return self.signed

    def shares(self, roster: Roster) -> list[Parcel]:
        """SHARES; the hospitals' roles are the ledger's to tell."""
        assert self.secrets is not None
        assert self.signed is not None
        self.received += _size(MaskingView(stage=Stage.SHARES, roster=roster))
        own = roster.model_validate_json(roster.model_dump_json())  # nobody remembers another's graph
        with self.clock:
            masking.check_roster(own, self.signed, SECURE, _DOMAIN)
            shares = masking.share(self.secrets, own, self.address)
        self.sent += _size(shares)
        return list(shares.parcels)

    def update(
        self,
        roster: Roster,
        sharers: Sequence[str],
        parcels: Sequence[Parcel],
        trained: Tensors,
        base: TensorFile,
        path: Path,
    ) -> None:
        """INPUTS."""
        assert self.secrets is not None
        self.received += _size(MaskingView(stage=Stage.INPUTS, sharers=tuple(sharers), parcels=tuple(parcels)))
        with self.clock:
            self.held = masking.open_parcels(self.secrets, roster, self.address, sharers, parcels)
            masks = masking.masks(self.secrets, roster, self.address, sharers)
            written = masking.write(path, trained, base, masks, roster, samples=_SAMPLES, bound=SECURE.bound)
        self.sent += written.size

    def consent(self, roster: Roster, survivors: Survivors) -> Consent:
        """CONSENT."""
        assert self.held is not None
        self.received += _size(MaskingView(stage=Stage.CONSENT, survivors=survivors))
        with self.clock:
            masking.check_survivors(survivors, roster, self.address, self.held)
            signature = signing.sign(survivors.statement(), _DOMAIN, self.account)
            consent = Consent(hospital=self.address, signature=signature)
        self.sent += _size(consent)
        return consent

    def reveal(self, roster: Roster, survivors: Survivors, consents: Sequence[Consent]) -> Revealed:
        """REVEAL."""
        assert self.held is not None
        self.received += _size(MaskingView(stage=Stage.REVEAL, consents=tuple(consents)))
        with self.clock:
            masking.check_consents(consents, survivors, roster, self.address, _DOMAIN)
            revealed = masking.reveal(self.held, roster, self.address, survivors)
        self.sent += _size(revealed)
        return revealed


def models(folder: Path, parts: int) -> tuple[TensorFile, Tensors]:
    """A base of ResNet50's shapes, or of a part of each tensor, and what everybody's training makes of it."""
    rng = np.random.default_rng(0)
    base = {
        name: (rng.standard_normal(-(-int(np.prod(shape)) // parts), np.float32) * np.float32(0.05))
        for name, shape in shapes().items()
    }
    trained = {name: values + STEP for name, values in base.items()}
    tensorfile.write(folder / "base", base)
    tensorfile.write(folder / "trained", trained)
    return TensorFile.open(folder / "base"), trained


def masked(folder: Path, count: int, lost: int, base: TensorFile, trained: Tensors) -> dict[str, float]:
    """A round of so many, some of whom are lost after they shared; see README.md."""
    hospitals = sorted((Hospital(Account.create()) for _ in range(count)), key=lambda each: int(each.address, 16))
    server = Clock()
    keys = [each.keys() for each in hospitals]
    with server:
        for its in keys:
            masking.check_points(its.keys)
            assert signing.signer(its.keys.statement(), _DOMAIN, its.signature) == its.keys.hospital
        roster = Roster(members=tuple(keys), threshold=SECURE.threshold)
        masking.graph(roster)
    addressed: dict[str, list[Parcel]] = {each.address: [] for each in hospitals}
    for each in hospitals:
        for parcel in each.shares(roster):
            addressed[parcel.recipient].append(parcel)
    sharers = roster.hospitals
    alive = hospitals[lost:]
    for each in alive:
        each.update(roster, sharers, addressed[each.address], trained, base, folder / each.address)
    files = [TensorFile.open(folder / each.address) for each in alive]
    survivors = Survivors(job=_JOB, round=1, roster=roster.digest(), survivors=sharers[lost:], dropped=sharers[:lost])
    consents = [each.consent(roster, survivors) for each in alive]
    revealed = [each.reveal(roster, survivors, consents) for each in alive]
    with server:
        unmasking = masking.reconstruct(roster, sharers, survivors.survivors, revealed, SECURE.bound)
        recipe = Recipe(Architecture.RESNET50, 1, Strategy(), masking=unmasking)
        fold(files, [_SAMPLES] * len(files), recipe, folder / "model", base)
    return {
        "client": statistics.median(each.clock.seconds for each in alive),
        "client_cpu": statistics.median(each.clock.cpu for each in alive),
        "server": server.seconds,
        "server_cpu": server.cpu,
        "bytes": statistics.median(each.sent for each in alive),
        "received": statistics.median(each.received for each in alive),
        "error": _error(folder / "model", trained),
    }


def plain(folder: Path, count: int, base: TensorFile, trained: Tensors) -> dict[str, float]:
    """The same without secure aggregation."""
    clocks = [Clock() for _ in range(count)]
    for at, clock in enumerate(clocks):
        with clock:
            tensorfile.write(folder / f"plain-{at}", trained, lasting=False)
    files = [TensorFile.open(folder / f"plain-{at}") for at in range(count)]
    with Clock() as server:
        fold(files, [_SAMPLES] * count, Recipe(Architecture.RESNET50, 1, Strategy()), folder / "model", base)
    return {
        "client": statistics.median(each.seconds for each in clocks),
        "client_cpu": statistics.median(each.cpu for each in clocks),
        "server": server.seconds,
        "server_cpu": server.cpu,
        "bytes": (folder / "plain-0").stat().st_size,
        "received": 0,
        "error": _error(folder / "model", trained),
    }


def alone(folder: Path, cohort: int) -> dict[str, float]:
    """One hospital's part in a round of so many, of whom its neighbours do what reaches it."""
    hospitals = sorted((Hospital(Account.create()) for _ in range(cohort)), key=lambda each: int(each.address, 16))
    roster = Roster(members=tuple(each.keys() for each in hospitals), threshold=SECURE.threshold)
    its = masking.graph(roster)
    one = hospitals[0]
    base, trained = models(folder, 1)
    one.shares(roster)
    parcels = []
    for at in its.neighbours[0]:
        each = hospitals[at]
        assert each.secrets is not None
        parcels += [
            parcel
            for parcel in masking.share(each.secrets, roster, each.address).parcels
            if parcel.recipient == one.address
        ]
    one.update(roster, roster.hospitals, parcels, trained, base, folder / "one")
    survivors = Survivors(job=_JOB, round=1, roster=its.digest, survivors=roster.hospitals, dropped=())
    one.consent(roster, survivors)
    consents = [
        Consent(hospital=each.address, signature=signing.sign(survivors.statement(), _DOMAIN, each.account))
        for each in hospitals[: its.needed[0]]
    ]
    one.reveal(roster, survivors, consents)
    return {
        "hospitals": cohort,
        "neighbours": len(its.neighbours[0]),
        "client": one.clock.seconds,
        "client_cpu": one.clock.cpu,
        "bytes": one.sent,
        "received": one.received,
        "plain": (folder / "trained").stat().st_size,
    }


def _error(path: Path, trained: Tensors) -> float:
    model = TensorFile.open(path)
    return max(float(np.abs(model.tensor(name) - values).max()) for name, values in trained.items())


def _size(document: Wire) -> int:
    return len(document.model_dump_json().encode())

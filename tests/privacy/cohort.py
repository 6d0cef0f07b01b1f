"""A cohort of hospitals that carry a round's masking out in this process, losing some of them at any stage."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from concilia_aggregator.unmasking import means
from concilia_kit import masking, signing, tensorfile
from concilia_kit.masking import Held, Secrets
from concilia_kit.masking.words import Scale
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.masking import (
    Consent,
    MaskingKeys,
    Revealed,
    Roster,
    SecureAggregation,
    SignedKeys,
    Survivors,
    Unmasking,
)
from eth_account import Account
from eth_account.signers.local import LocalAccount

Tensors = dict[str, npt.NDArray[np.generic]]

JOB, BASE = "1" * 64, "2" * 64
DOMAIN = signing.Domain(chain_id=31337, contract="0x" + "11" * 20)
THIRDS = SecureAggregation()
BOUND = THIRDS.bound


def model(seed: int = 0) -> Tensors:
    """Tensors of every floating dtype, a scalar, an empty one, and counters in between."""
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.normal(size=(7, 5, 3)).astype(np.float32),
        "b.counter": np.array(3 + seed),
        "c.half": rng.normal(size=33).astype(np.float16),
        "d.bias": (9 * rng.normal(size=129)).astype(np.float32),
        "e.double": rng.normal(size=(4, 4)),
        "f.scale": np.array(rng.normal(), np.float32),
        "g.empty": np.empty((0, 3), np.float32),
    }


def changed(start: Tensors, seed: int, by: float = 0.1) -> Tensors:
    """A model that was trained: every floating value moved, and some a good deal."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, tensor in start.items():
        if not np.issubdtype(tensor.dtype, np.floating):
            moved[name] = tensor
            continue
        step = by * rng.standard_t(3, size=tensor.shape)
        moved[name] = np.asarray(tensor + step).astype(tensor.dtype)
    return moved


@dataclass
class Member:
    """One hospital: its key, its round's secrets, what it trained, what it holds."""

    account: LocalAccount
    secrets: Secrets
    samples: int
    trained: Tensors
    signed: SignedKeys
    held: Held | None = None

    @property
    def hospital(self) -> str:
        return str(self.account.address)


def member(at: int, samples: int, trained: Tensors) -> Member:
    """The same one for the same number."""
    account = Account.from_key(drawn(f"account {at}"))
    secrets = Secrets(
        mask=drawn(f"mask {at}").hex()[:32],
        key=drawn(f"key {at}").hex()[:32],
        sealing=drawn(f"sealing {at}").hex(),
        sharing=drawn(f"sharing {at}").hex(),
    )
    keys = masking.advertise(secrets, hospital=account.address, job=JOB, round_=1, base=BASE, samples=samples)
    return Member(account, secrets, samples, trained, signed_keys(account, keys))


def drawn(what: str) -> bytes:
    return hashlib.sha256(what.encode()).digest()


def signed_keys(account: LocalAccount, keys: MaskingKeys) -> SignedKeys:
    return SignedKeys(keys=keys, signature=signing.sign(keys.statement(), DOMAIN, account))


@dataclass
class Cohort:
    """Members in ascending order of address, and a base of theirs in a folder."""

    members: list[Member]
    folder: Path
    secure: SecureAggregation = THIRDS
    base: TensorFile = field(init=False)
    sharers: list[str] = field(default_factory=list)
    given: dict[str, TensorFile] = field(default_factory=dict)
    words: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    roster: Roster = field(init=False)

    @classmethod
    def of(cls, count: int, folder: Path, secure: SecureAggregation = THIRDS, start: Tensors | None = None) -> Cohort:
        start = model() if start is None else start
        tensorfile.write(folder / "base", start)
        members = [member(at, 40 + 13 * (at % 7), changed(start, at + 1)) for at in range(count)]
        cohort = cls(sorted(members, key=lambda each: int(each.hospital, 16)), folder, secure)
        cohort.base = TensorFile.open(folder / "base")
        return cohort

    def hospitals(self, among: Sequence[int]) -> list[str]:
        return [self.members[at].hospital for at in among]

    def by_name(self, hospital: str) -> Member:
        return next(each for each in self.members if each.hospital == hospital)

    def keys(self, gone: Sequence[str] = ()) -> Roster:
        """KEYS, without some."""
        self.members = [each for each in self.members if each.hospital not in gone]
        members = tuple(each.signed for each in self.members)
        self.roster = Roster(members=members, threshold=self.secure.threshold, group=self.secure.group)
        return self.roster

    def shares(self, gone: Sequence[str] = ()) -> None:
        """SHARES, without some; the others take their parcels."""
        sharing = [each for each in self.members if each.hospital not in gone]
        self.sharers = [each.hospital for each in sharing]
        parcels = []
        for at, each in enumerate(sharing):
            if at < 3:  # all look at the same signatures
                masking.check_roster(self.roster, each.signed, self.secure, DOMAIN)
            shares = masking.share(each.secrets, self.roster, each.hospital)
            masking.check_shares(self.roster, each.hospital, shares)
            parcels += shares.parcels
        for each in sharing:
            its = [parcel for parcel in parcels if parcel.recipient == each.hospital and parcel.sender in self.sharers]
            each.held = masking.open_parcels(each.secrets, self.roster, each.hospital, self.sharers, its)

    def inputs(self, gone: Sequence[str] = (), norm: float | None = None) -> None:
        """INPUTS, without some."""
        for each in self.members:
            if each.hospital in self.sharers and each.hospital not in gone:
                path = self.folder / each.hospital
                its = masking.masks(each.secrets, self.roster, each.hospital, self.sharers)
                masking.write(
                    path, each.trained, self.base, its, self.roster, samples=each.samples, bound=BOUND, norm=norm
                )
                self.given[each.hospital] = TensorFile.open(path)

    def survivors(self) -> Survivors:
        return Survivors(
            job=JOB,
            round=1,
            roster=self.roster.digest(),
            survivors=tuple(each for each in self.sharers if each in self.given),
            dropped=tuple(each for each in self.sharers if each not in self.given),
        )

    def consents(self, gone: Sequence[str] = ()) -> list[Consent]:
        """CONSENT, without some."""
        survivors, consents = self.survivors(), []
        for each in self.members:
            if each.hospital in self.given and each.hospital not in gone:
                assert each.held is not None
                masking.check_survivors(survivors, self.roster, each.hospital, each.held)
                signature = signing.sign(survivors.statement(), DOMAIN, each.account)
                consents.append(Consent(hospital=each.hospital, signature=signature))
        return consents

    def reveals(self, consents: Sequence[Consent], gone: Sequence[str] = ()) -> list[Revealed]:
        """REVEAL, by those that agreed, without some."""
        survivors, revealed = self.survivors(), []
        for each in consents:
            if each.hospital not in gone:
                its = self.by_name(each.hospital)
                masking.check_consents(consents, survivors, self.roster, its.hospital, DOMAIN)
                assert its.held is not None
                revealed.append(masking.reveal(its.held, self.roster, its.hospital, survivors))
        return revealed

    def unmasking(self, revealed: Sequence[Revealed]) -> Unmasking:
        return masking.reconstruct(self.roster, self.sharers, self.survivors().survivors, revealed, BOUND)

    def means(self, unmasking: Unmasking, threads: int | None = None) -> tuple[list[TensorFile], list[int]]:
        samples = [self.by_name(each).samples for each in unmasking.survivors]
        files = [self.given[each] for each in unmasking.survivors]
        return means(files, samples, unmasking, self.base, self.folder, threads=threads)

    def expected(self, hospitals: Sequence[str]) -> Tensors:
        """The mean model of some, from the plain sum of what each one's change is as whole numbers, in memory at once,
        by the formula as it is written down."""
        unit = 2**31 - 1 - len(self.roster.members)
        weight = sum(self.by_name(each).samples for each in hospitals)
        result: Tensors = {}
        for name in self.base:
            base = self.base.tensor(name)
            if not np.issubdtype(base.dtype, np.floating):
                result[name] = base
                continue
            step = BOUND * max(1.0, float(np.abs(base).max(initial=0))) / unit
            sums = sum((self.quantised(each, name) for each in hospitals), np.zeros(base.shape, np.int64))
            mean = sums * (step * (self.roster.samples / weight)) + base.astype(np.float64)
            result[name] = np.asarray(mean).astype(base.dtype)
        return result

    def quantised(self, hospital: str, name: str) -> npt.NDArray[np.int64]:
        """What a hospital's change of a tensor is before it is masked."""
        its, words = self.by_name(hospital), np.empty(self.base.tensor(name).size, np.int32)
        change = its.trained[name].astype(np.float64).reshape(-1) - self.base.flat(name)
        Scale.of(self.roster, BOUND, self.base).quantise(name, change, its.samples, words)
        return words.astype(np.int64).reshape(self.base.tensor(name).shape)


def a_third(of: Sequence[str], begin: int = 0) -> list[str]:
    """As many as may be lost, every so many of them."""
    lost = len(of) - math.ceil(2 * len(of) / 3)
    turned = [*of[begin:], *of[:begin]]
    return [turned[at * len(of) // lost] for at in range(lost)] if lost else []


def same(found: TensorFile, expected: Tensors) -> bool:
    """Bit for bit."""
    return sorted(found) == sorted(expected) and all(
        found.tensor(name).dtype == each.dtype and found.tensor(name).tobytes() == each.tobytes()
        for name, each in expected.items()
    )

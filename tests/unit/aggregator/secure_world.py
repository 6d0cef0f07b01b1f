"""Secure rounds with hospitals that live in memory: each does what its node would at the stage that it is told."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from concilia_aggregator import main
from concilia_aggregator.folder import Folder
from concilia_aggregator.masking.receiving import Receiving
from concilia_aggregator.masking.rules import Room
from concilia_aggregator.metrics import RoundMetrics
from concilia_aggregator.rounds import JobState
from concilia_aggregator.screening import Limits
from concilia_aggregator.service import Coordinator
from concilia_aggregator.store import Store, state_of
from concilia_kit import database, masking, signing
from concilia_kit.masking import Held, Secrets
from concilia_kit.masking.words import Scale
from concilia_kit.problems import Conflict, Unavailable
from concilia_kit.signing import Domain
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.masking import Consent, Masked, MaskingView, Revealed, Roster, SignedKeys, Stage
from concilia_kit.wire.nodes import NodeRegistration
from eth_account import Account
from eth_account.signers.local import LocalAccount
from prometheus_client import CollectorRegistry

from .conftest import METRICS, FolderArtifacts, MemoryLedger, model

DOMAIN = Domain(chain_id=1337, contract="0x" + "11" * 20)
REGISTRATION = NodeRegistration(
    site="ward",
    source="drawn lesions",
    training_images=(10,) * 7,
    held_out_images=(2,) * 7,
    training_lesions=60,
    held_out_lesions=12,
    overlapping_lesions=0,
    skipped_images=0,
)
STAGE_SECONDS = 30
DEADLINE_SECONDS = 600


def near(seed: int) -> dict[str, Any]:
    """A trained model, not far from `model(0)`."""
    rng = np.random.default_rng(seed)
    changed = {
        name: (tensor + rng.normal(scale=0.05, size=tensor.shape).astype(np.float32))
        for name, tensor in model(0).items()
        if tensor.dtype == np.float32
    }
    return {**model(0), **changed}


@dataclass
class Hospital:
    """A hospital's node: what it would keep on its disk, and what it does next."""

    account: LocalAccount
    samples: int
    seed: int
    leaves: Stage | None = None
    """The first stage at which it does nothing any more."""
    secrets: dict[int, Secrets] = field(default_factory=dict)
    own: dict[int, SignedKeys] = field(default_factory=dict)
    rosters: dict[int, Roster] = field(default_factory=dict)
    held: dict[int, Held] = field(default_factory=dict)
    revealed: dict[int, Revealed] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.account.address)

    def keys(self, job: str, round_: int, base: str) -> SignedKeys:
        secrets = self.secrets.setdefault(round_, Secrets.new())
        keys = masking.advertise(
            secrets, hospital=self.address, job=job, round_=round_, base=base, samples=self.samples
        )
        signed = SignedKeys(keys=keys, signature=signing.sign(keys.statement(), DOMAIN, self.account))
        return self.own.setdefault(round_, signed)

    def consent(self, view: MaskingView) -> Consent:
        assert view.survivors is not None
        signature = signing.sign(view.survivors.statement(), DOMAIN, self.account)
        return Consent(hospital=self.address, signature=signature)


class SecureWorld:
    """A coordinator with its doubles, and hospitals in ascending order of address."""

    def __init__(self, folder: Path, ledger: MemoryLedger, artifacts: FolderArtifacts, hospitals: int = 4) -> None:
        self.folder_path = folder
        self.engine = database.engine(f"sqlite:///{folder}/aggregator.db")
        database.migrate(self.engine, main.MIGRATIONS)
        self.store = Store(self.engine)
        self.ledger, self.artifacts = ledger, artifacts
        ledger.clock = lambda: time.time()  # whatever it is by then
        self.sent: list[tuple[str, str, dict[str, object]]] = []
        accounts = sorted(
            (Account.from_key(bytes([number + 1]) * 32) for number in range(hospitals)),
            key=lambda account: int(account.address, 16),
        )
        self.hospitals = [Hospital(account, 20 + 10 * seed % 50, seed) for seed, account in enumerate(accounts)]
        self.receiving = Receiving(self.store, lambda: DOMAIN)
        self.initial = artifacts.add(model(0))
        for each in self.hospitals:
            self.join(each)
        self.start()

    def start(self) -> None:
        """A worker, which knows nothing but what is stored."""
        limits = Limits(max_samples=1000, max_norm_ratio=10)
        measured = RoundMetrics(CollectorRegistry())
        folder = Folder(self.artifacts, self.ledger, self.folder_path / "work", limits, measured)
        self.coordinator = Coordinator(
            self.store,
            self.ledger,
            self.artifacts,
            folder,
            lambda *task: self.sent.append(task),
            10**9,
            "concilia-aggregator 1.2.3",
            measured,
        )

    def join(self, hospital: Hospital) -> None:
        self.ledger.members.add(hospital.address)
        self.store.register(hospital.address, REGISTRATION)

    def create(self, secure: dict[str, Any] | None = None, begins: bool = True, **changes: Any) -> str:
        """A job whose initial model was evaluated, and whose first round begins."""
        fields = {
            "name": "j",
            "initial": self.initial,
            "quorum": 2,
            "rounds": 1,
            "architecture": "resnet18",
            "deadline_seconds": DEADLINE_SECONDS,
            "secure": {"stage_seconds": STAGE_SECONDS, **(secure or {})},
            **changes,
        }
        job = self.coordinator.create(JobSpec.model_validate(fields), self.hospitals[0].address)
        row = self.store.job(job)
        self.store.save(row, JobState(Phase.OPENING, self.initial, round=1))
        if begins:
            self.advance(job)
        return job

    def advance(self, job: str) -> None:
        """Look at a job; where that ends with a service that does not answer, by a worker that starts anew."""
        for _ in range(40):
            try:
                self.coordinator.advance(job)
            except Unavailable:
                self.start()
            else:
                return
        raise AssertionError("a worker that crashes for ever")

    def state(self, job: str) -> JobState:
        return state_of(self.store.job(job))

    def room(self, job: str, round_: int = 1) -> Room:
        room = self.store.masking.get(job, round_)
        assert room is not None
        return room

    def act(self, job: str, hospital: Hospital, round_: int = 1) -> None:
        """What a node does now; what it is too late for it lets go."""
        view = self.receiving.view(job, round_, hospital.address)
        if hospital.leaves is not None and list(Stage).index(view.stage) >= list(Stage).index(hospital.leaves):
            return
        take = self.receiving
        base = self.ledger.rounds[job, round_].base
        if view.stage is Stage.KEYS:
            take.keys(job, round_, hospital.address, hospital.keys(job, round_, base))
        elif view.stage is Stage.SHARES and view.roster is not None and round_ in hospital.own:
            masking.check_roster(view.roster, hospital.own[round_], self._secure(job), DOMAIN)
            shares = masking.share(hospital.secrets[round_], view.roster, hospital.address)
            take.shares(job, round_, hospital.address, shares)
        elif view.stage is Stage.INPUTS and hospital.address in (view.sharers or ()) and round_ not in hospital.held:
            self.submit(job, hospital, view, round_)
        elif view.stage in {Stage.CONSENT, Stage.REVEAL} and self._is_in_sum(hospital, view):
            self._unmask(job, hospital, view, round_)

    def submit(self, job: str, hospital: Hospital, view: MaskingView, round_: int = 1) -> None:
        assert view.roster is not None
        assert view.sharers is not None
        secure, roster = self._secure(job), view.roster
        secrets, name = hospital.secrets[round_], hospital.address
        hospital.rosters[round_] = roster
        hospital.held[round_] = masking.open_parcels(secrets, roster, name, view.sharers, view.parcels)
        base = self.ledger.rounds[job, round_].base
        with tempfile.TemporaryDirectory() as folder:
            written = masking.write(
                Path(folder) / "u",
                near(hospital.seed + 1),
                TensorFile.open(self.artifacts.fetch(base), self.artifacts.keys),
                masking.masks(secrets, roster, name, view.sharers),
                roster,
                samples=hospital.samples,
                bound=secure.bound,
                norm=secure.norm,
            )
            self.artifacts._store(written.digest, (Path(folder) / "u").read_bytes())
        masked = Masked(roster=roster.digest(), clipped=written.clipped, norm=secure.norm)
        metrics = METRICS.model_copy(update={"masked": masked})
        self.ledger.submit(job, round_, name, written.digest, hospital.samples, metrics)

    def round(self, job: str, round_: int = 1, hospitals: Iterable[Hospital] | None = None) -> None:
        """Let hospitals act until none does anything that moves the job."""
        for _ in range(12):
            before = self.state(job), self.room(job, round_), len(self.ledger.rounds[job, round_].updates)
            for hospital in self.hospitals if hospitals is None else hospitals:
                try:
                    self.act(job, hospital, round_)
                except Conflict as problem:
                    if problem.problem_code not in {"masking_stage_over", "deadline_passed"}:
                        raise
            self.advance(job)
            if before == (self.state(job), self.room(job, round_), len(self.ledger.rounds[job, round_].updates)):
                return

    def expected(self, job: str, hospitals: Collection[Hospital], roster: Roster) -> dict[str, Any]:
        """The mean of what hospitals' quantised updates stand for, by samples."""
        base = TensorFile.open(self.artifacts.fetch(self.initial), self.artifacts.keys)
        scale = Scale.of(roster, self._secure(job).bound, base)
        total = sum(each.samples for each in hospitals)
        mean: dict[str, Any] = dict(model(0))
        for name in ("layer.weight", "layer.bias"):
            start, sums = base.flat(name), np.zeros(base.header.tensors[name].size)
            for each in hospitals:
                words = np.empty(sums.size, np.int32)
                change = near(each.seed + 1)[name].reshape(-1).astype(np.float64) - start
                scale.quantise(name, change, each.samples, words)
                decoded = start + words.astype(np.float64) * scale.steps[name] * scale.samples / each.samples
                sums += decoded * each.samples
            mean[name] = (sums / total).reshape(base.header.tensors[name].shape)
        return mean

    def global_model(self, job: str, round_: int = 1) -> TensorFile:
        digest = self.ledger.rounds[job, round_].global_digest
        assert digest is not None
        return TensorFile.open(self.artifacts.fetch(digest), self.artifacts.keys)

    def _unmask(self, job: str, hospital: Hospital, view: MaskingView, round_: int) -> None:
        assert view.survivors is not None
        roster, name = hospital.rosters[round_], hospital.address
        masking.check_survivors(view.survivors, roster, name, hospital.held[round_])
        accepted = {item.update.hospital for item in self.ledger.rounds[job, round_].accepted()}
        assert accepted == {*view.survivors.survivors}, "what a node would refuse"
        self.receiving.consent(job, round_, name, hospital.consent(view))
        if view.stage is Stage.REVEAL:
            masking.check_consents(view.consents, view.survivors, roster, name, DOMAIN)
            hospital.revealed[round_] = masking.reveal(hospital.held[round_], roster, name, view.survivors)
            self.receiving.reveal(job, round_, name, hospital.revealed[round_])

    @staticmethod
    def _is_in_sum(hospital: Hospital, view: MaskingView) -> bool:
        return view.survivors is not None and hospital.address in view.survivors.survivors

    def _secure(self, job: str) -> Any:
        return JobSpec.model_validate(self.store.job(job).spec).secure

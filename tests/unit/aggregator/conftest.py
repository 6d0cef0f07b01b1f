"""Doubles that work: a ledger and an artifact store in memory and on disk, with the contract's own rules."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_aggregator.artifacts import ArtifactNotFound
from concilia_kit import digests, merkle
from concilia_kit.problems import Conflict, NotFound
from concilia_kit.sealing import NO_KEYS, Keyring, StoreKey
from concilia_kit.signing import Update
from concilia_kit.storedfile import StoredFile, digest_of
from concilia_kit.wire.chain import (
    LedgerRound,
    LedgerUpdate,
    Publication,
    Rejection,
    RoundClosure,
    RoundOpening,
    RoundStanding,
    RoundStatus,
    Transaction,
)
from concilia_kit.wire.models import ModelRegistration
from concilia_kit.wire.training import UpdateMetrics

METRICS = UpdateMetrics(
    loss=1.0,
    accuracy=0.5,
    images=10,
    lesions=8,
    skipped_images=0,
    epochs=1,
    seconds_download=0.1,
    seconds_training=2.0,
    seconds_upload=0.2,
    bytes_download=100,
    bytes_upload=100,
)


COMMIT_GRACE = 3600  # the contract's


@dataclass
class MemoryLedger:
    """`Ledger` with the contract's rules, in memory, and those of the chain service that collects for it."""

    members: set[str] = field(default_factory=set)
    rounds: dict[tuple[str, int], LedgerRound] = field(default_factory=dict)
    collected: dict[tuple[str, int], list[LedgerUpdate]] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    clock: Any = time.time

    def hospitals(self) -> frozenset[str]:
        return frozenset(self.members)

    def round(self, job: str, round_: int) -> LedgerRound | None:
        return self.rounds.get((job, round_))

    def standing(self, job: str, round_: int) -> RoundStanding | None:
        known = self.round(job, round_)
        if known is None:
            return None
        is_collecting = known.merkle and known.root is None
        return RoundStanding(
            job=job,
            round=round_,
            status=known.status,
            base=known.base,
            deadline=known.deadline,
            quorum=known.quorum,
            updates=len(known.collected) if is_collecting else known.submitted,
            rejected=known.rejected,
            merkle=known.merkle,
            committed=known.root is not None,
        )

    def transactions(self, job: str) -> list[Transaction]:
        return []

    def open(self, opening: RoundOpening) -> None:
        key = (opening.job, opening.round)
        if key in self.rounds:
            known = self.rounds[key]
            asked = (opening.base, opening.deadline, opening.quorum, opening.merkle)
            if (known.base, known.deadline, known.quorum, known.merkle) != asked:
                raise Conflict("another opening", code="round_out_of_order")
            return
        if opening.deadline <= self.clock():
            raise Conflict("too late", code="deadline_passed")
        self.rounds[key] = LedgerRound(
            job=opening.job,
            round=opening.round,
            status=RoundStatus.OPEN,
            base=opening.base,
            deadline=opening.deadline,
            quorum=opening.quorum,
            submitted=0,
            rejected=0,
            global_digest=None,
            contributions=None,
            updates=(),
            merkle=opening.merkle,
        )

    def submit(
        self,
        job: str,
        round_: int,
        hospital: str,
        digest: str,
        samples: int = 10,
        metrics: UpdateMetrics | None = METRICS,
    ) -> None:
        known = self._open(job, round_)
        if self.clock() > known.deadline:
            raise Conflict("too late", code="deadline_passed")
        if known.root is not None:
            raise Conflict("committed", code="already_committed")
        waiting = self.collected.setdefault((job, round_), [])
        if any(item.update.hospital == hospital for item in (*known.updates, *waiting)):
            raise Conflict("twice", code="already_submitted")
        update = Update(
            hospital=hospital,
            job=job,
            round=round_,
            base=known.base,
            digest=digest,
            samples=samples,
            metrics=digests.of_json((metrics or METRICS).model_dump(mode="json")),
        )
        item = LedgerUpdate(update=update, signature="0x00", metrics=metrics, reason=None, transaction="0x", block=1)
        if known.merkle:
            waiting.append(item)
            self._set(known, collected=tuple(item.update.hospital for item in waiting))
        else:
            self._set(known, submitted=known.submitted + 1, updates=(*known.updates, item))

    def commit(self, job: str, round_: int) -> None:
        known = self._open(job, round_)
        if known.root is not None:
            return
        counted = [item for item in self.collected.get((job, round_), ()) if item.update.hospital in self.members]
        waiting = sorted(counted, key=lambda item: int(item.update.hospital, 16))
        if not waiting:
            raise Conflict("nobody", code="nothing_collected")
        if self.clock() > known.deadline + COMMIT_GRACE:
            raise Conflict("too late", code="deadline_passed")
        updates = tuple(item.model_copy(update={"index": index}) for index, item in enumerate(waiting))
        root = merkle.root(merkle.leaf(item.update.digest.encode()) for item in updates).hex()
        self._set(known, submitted=len(updates), updates=updates, collected=(), root=root)

    def reject(self, job: str, round_: int, rejection: Rejection) -> None:
        known = self._open(job, round_)
        if all(item.update.hospital != rejection.hospital for item in known.updates):
            raise NotFound("no such update", code="update_not_found")
        updates = tuple(
            item.model_copy(update={"reason": rejection.reason}) if item.update.hospital == rejection.hospital else item
            for item in known.updates
        )
        self._set(known, rejected=known.rejected + 1, updates=updates)

    def close(self, job: str, round_: int, closure: RoundClosure) -> None:
        known = self.rounds[job, round_]
        if known.status is RoundStatus.CLOSED and known.global_digest == closure.global_digest:
            return
        known = self._open(job, round_)
        if closure.count != known.submitted - known.rejected:
            raise Conflict("count", code="contribution_count_mismatch")
        if closure.count < known.quorum:
            raise Conflict("quorum", code="quorum_not_reached")
        self._set(
            known,
            status=RoundStatus.CLOSED,
            global_digest=closure.global_digest,
            contributions=closure.contributions,
        )

    def abort(self, job: str, round_: int) -> None:
        if self.rounds[job, round_].status is not RoundStatus.ABORTED:
            self._set(self._open(job, round_), status=RoundStatus.ABORTED)

    def publish(self, publication: Publication) -> None:
        self.published[publication.job] = publication.digest

    def _open(self, job: str, round_: int) -> LedgerRound:
        known = self.rounds.get((job, round_))
        if known is None or known.status is not RoundStatus.OPEN:
            raise Conflict("not open", code="round_not_open")
        return known

    def _set(self, known: LedgerRound, **changes: Any) -> None:
        self.rounds[known.job, known.round] = known.model_copy(update=changes)


@dataclass
class FolderArtifacts:
    """`Artifacts` in a folder."""

    directory: Path
    registered: list[ModelRegistration] = field(default_factory=list)
    put_aside: set[str] = field(default_factory=set)
    keys: Keyring = NO_KEYS

    def exists(self, digest: str) -> bool:
        return (self.directory / digest).exists()

    def fetch(self, digest: str) -> Path:
        if not self.exists(digest):
            raise ArtifactNotFound(digest)
        return self.directory / digest

    def release(self, digest: str) -> None:
        """Kept."""

    def put(self, digest: str, path: Path) -> None:
        with StoredFile.open(path, self.keys) as file:
            assert (file.seal is None) == (self.keys.current is None)
            data = b"".join(file.pieces())
        assert hashlib.sha256(data).hexdigest() == digest
        self._store(digest, data)
        self.put_aside.discard(digest)

    def is_put_aside(self, digest: str) -> bool:
        return digest in self.put_aside

    def is_intact(self, digest: str) -> bool:
        if digest in self.put_aside:
            return False
        if digest_of(self.fetch(digest), self.keys) != digest:
            self.put_aside.add(digest)
            (self.directory / digest).unlink()
        return digest not in self.put_aside

    def register(self, registration: ModelRegistration) -> None:
        self.registered.append(registration)

    def add(self, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
        data = safetensors.numpy.save(tensors, metadata)
        digest = hashlib.sha256(data).hexdigest()
        if not self.exists(digest):  # the store leaves a file as it is that it has
            self._store(digest, data)
        return digest

    def content(self, digest: str) -> bytes:
        with StoredFile.open(self.fetch(digest), self.keys) as file:
            return b"".join(file.pieces())

    def _store(self, digest: str, data: bytes) -> None:
        seal = self.keys.seal()
        (self.directory / digest).write_bytes(data if seal is None else seal.header + seal.at(0)(data))


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture(params=["plain", "sealed"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> FolderArtifacts:
    (tmp_path / "artifacts").mkdir()
    keys = Keyring(StoreKey.new()) if request.param == "sealed" else NO_KEYS
    return FolderArtifacts(tmp_path / "artifacts", keys=keys)


def model(seed: int, scale: float = 1.0) -> dict[str, Any]:
    """A small model's tensors: two float tensors and a counter."""
    rng = np.random.default_rng(seed)
    return {
        "layer.weight": (rng.normal(size=(5, 7)) * scale).astype(np.float32),
        "layer.bias": (rng.normal(size=7) * scale).astype(np.float32),
        "norm.num_batches_tracked": np.array(seed, np.int64),
    }


def address(number: int) -> str:
    """A checksummed address."""
    from eth_utils.address import to_checksum_address

    return str(to_checksum_address(f"0x{number:040x}"))

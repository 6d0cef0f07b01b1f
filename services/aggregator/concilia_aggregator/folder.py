"""Where updates are fetched, screened, rejected on the chain and folded: the edge around `screening` and `folding`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from concilia_kit import digests, logs
from concilia_kit.digests import Contribution, in_order
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.chain import LedgerRound, LedgerUpdate, Reason, Rejection
from concilia_kit.wire.jobs import JobSpec

from concilia_aggregator.artifacts import ArtifactNotFound, Artifacts
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.ledger import Ledger
from concilia_aggregator.metrics import RoundMetrics
from concilia_aggregator.screening import Limits, screen

_log = logs.get(__name__)


class Folder:
    """Turns a round's recorded updates into a stored global model."""

    def __init__(
        self,
        artifacts: Artifacts,
        ledger: Ledger,
        directory: Path,
        limits: Limits,
        metrics: RoundMetrics | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._ledger = ledger
        self._directory = directory
        self._limits = limits
        self._metrics = metrics or RoundMetrics()

    def screen(self, recorded: LedgerRound, registered: Mapping[str, int]) -> LedgerRound:
        """Screen what was not screened before; rejections are on the chain when this returns.

        Returns the round with its rejections. Raises `Problem` where a service does not answer.
        """
        base = self._open(recorded.base)
        screened: list[LedgerUpdate] = []
        rejected = 0
        for item in recorded.updates:
            reason = item.reason or self._reason(item, base, registered.get(item.update.hospital))
            if reason is not None and item.reason is None:
                rejection = Rejection(hospital=item.update.hospital, reason=reason)
                self._ledger.reject(recorded.job, recorded.round, rejection)
                rejected += 1
                self._metrics.rejected(reason)
                _log.warning(
                    "update rejected",
                    job=recorded.job,
                    round=recorded.round,
                    hospital=item.update.hospital,
                    reason=reason.name.lower(),
                )
            screened.append(item.model_copy(update={"reason": reason}))
        return recorded.model_copy(update={"updates": tuple(screened), "rejected": recorded.rejected + rejected})

    def fold(self, recorded: LedgerRound, spec: JobSpec) -> str:
        """Fold a screened round's accepted updates, store the global model; returns its digest."""
        contributions = in_order(
            Contribution(item.update.hospital, item.update.digest, item.update.samples) for item in recorded.accepted()
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        target = self._directory / f"{recorded.job[:16]}-{recorded.round}.safetensors"
        recipe = Recipe(spec.architecture, recorded.round, spec.strategy)
        try:
            digest = fold(
                [self._open(item.digest) for item in contributions],
                [item.samples for item in contributions],
                recipe,
                target,
            )
            self._artifacts.put(digest, target)
        finally:
            target.unlink(missing_ok=True)
        return digest

    def size(self, recorded: LedgerRound) -> int:
        """Bytes of a round's accepted updates, which were folded just now."""
        return sum(self._artifacts.fetch(item.update.digest).stat().st_size for item in recorded.accepted())

    def release(self, recorded: LedgerRound) -> None:
        """Let go of local copies of a closed round's files."""
        for item in recorded.updates:
            self._artifacts.release(item.update.digest)
        self._artifacts.release(recorded.base)

    def _open(self, digest: str) -> TensorFile:
        return TensorFile.open(self._artifacts.fetch(digest))

    def _reason(self, item: LedgerUpdate, base: TensorFile, registered: int | None) -> Reason | None:
        try:
            path = self._artifacts.fetch(item.update.digest)
        except ArtifactNotFound:
            return Reason.ARTIFACT_MISSING
        if digests.of_file(path) != item.update.digest:
            return Reason.DIGEST_MISMATCH
        try:
            update = TensorFile.open(path)
        except MalformedFile:
            return Reason.MALFORMED_FILE
        return screen(update, base, item.update.samples, registered, self._limits)

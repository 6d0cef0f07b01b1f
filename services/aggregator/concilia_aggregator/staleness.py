"""How late an asynchronous job's update says that it is: read from the metrics that its hospital signed. Pure.

A hospital trains for a round and, where that is over by then, submits its work in a later one: its staleness is how
many rounds later, and its weight depends on it (`strategies.fedbuff`). So what says it must be what was signed.
"""

from __future__ import annotations

from collections.abc import Sequence

from concilia_kit import digests
from concilia_kit.wire.chain import LedgerRound, LedgerUpdate, Reason
from concilia_kit.wire.training import MAX_STALENESS, UpdateMetrics


def fault(metrics: UpdateMetrics | None, signed: str, number: int, *, asynchronous: bool) -> Reason | None:
    """Why an update of round `number` is left out for what its metrics say of its staleness, or None where it is fine.

    `signed` is the digest of the metrics that the hospital signed. Rules, in the order they apply: nothing is late
    where the job is not asynchronous (`SAMPLE_COUNT`, the reason for weights that cannot be); there are metrics
    (`ARTIFACT_MISSING`); they are those that were signed (`DIGEST_MISMATCH`); the round that was trained for is one of
    the job's, and at most `MAX_STALENESS` rounds ago (`SAMPLE_COUNT`).
    """
    if not asynchronous:
        return Reason.SAMPLE_COUNT if metrics is not None and metrics.staleness else None
    if metrics is None:
        return Reason.ARTIFACT_MISSING
    if digests.of_json(metrics.model_dump(mode="json")) != signed:
        return Reason.DIGEST_MISMATCH
    return Reason.SAMPLE_COUNT if metrics.staleness > min(MAX_STALENESS, number - 1) else None


def fault_of(item: LedgerUpdate, *, asynchronous: bool) -> Reason | None:
    """The same of an update as the ledger has it."""
    return fault(item.metrics, item.update.metrics, item.update.round, asynchronous=asynchronous)


def by_hospital(recorded: LedgerRound, hospitals: Sequence[str]) -> list[int]:
    """The staleness of each hospital's update in a screened round."""
    said = {item.update.hospital: item.metrics.staleness for item in recorded.updates if item.metrics is not None}
    return [said.get(hospital, 0) for hospital in hospitals]

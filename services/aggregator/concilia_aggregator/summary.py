"""What a closed round came to: seconds by phase, bytes, who counted and who was rejected."""

from __future__ import annotations

from concilia_kit.wire.chain import LedgerRound

from concilia_aggregator.ledger import Ledger
from concilia_aggregator.metrics import CHAIN, MOVING, TRAINING


def seconds(recorded: LedgerRound, ledger: Ledger) -> dict[str, float]:
    """Seconds by phase, as nodes and chain service measured them.

    Of a transaction that carried several orders the longest latency counts, once: what the one that came first waited.
    """
    latencies: dict[str, float] = {}
    for item in ledger.transactions(recorded.job):
        if item.round == recorded.round:
            latencies[item.transaction] = max(item.latency, latencies.get(item.transaction, 0.0))
    metrics = [item.metrics for item in recorded.updates if item.metrics is not None]
    return {
        TRAINING: max((item.seconds_training for item in metrics), default=0.0),
        MOVING: sum(item.seconds_download + item.seconds_upload for item in metrics),
        CHAIN: sum(latencies.values()),
    }


def of(recorded: LedgerRound, spent_by_phase: dict[str, float]) -> dict[str, object]:
    """What is kept of a closed round beside its model: seconds by phase, who counted, who was rejected, bytes moved,
    and what it cost whom where there is differential privacy."""
    metrics = [item.metrics for item in recorded.updates if item.metrics is not None]
    return {
        **{f"seconds_{phase}": spent for phase, spent in spent_by_phase.items()},
        "accepted": [item.update.hospital for item in recorded.accepted()],
        "rejected": [
            {"hospital": item.update.hospital, "digest": item.update.digest, "reason": item.reason.name.lower()}
            for item in recorded.updates
            if item.reason is not None
        ],
        "bytes_moved": sum(item.bytes_download + item.bytes_upload for item in metrics),
        "privacy": {
            item.update.hospital: item.metrics.privacy.model_dump(mode="json")
            for item in recorded.updates
            if item.metrics is not None and item.metrics.privacy is not None
        },
    }

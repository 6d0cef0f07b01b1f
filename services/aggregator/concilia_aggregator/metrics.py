"""What the aggregator measures: rounds as its worker moves them; jobs, nodes and queue at its API's scrapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from concilia_kit.metrics import SECONDS, AtScrape
from concilia_kit.wire.chain import Reason
from prometheus_client import CollectorRegistry, Counter, Histogram

CLOSED, ABORTED = "closed", "aborted"
TRAINING, MOVING, CHAIN, FOLDING, EVALUATING = "training", "moving", "chain", "folding", "evaluating"


class RoundMetrics:
    """Rounds and what went into them; without a registry they are counted and shown nowhere."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.rounds = Counter("concilia_rounds", "Rounds that ended.", ("outcome",), registry=registry)
        self.updates = Counter(
            "concilia_updates",
            "Updates folded into a closed round (reason 'none'), and updates rejected on the ledger, by reason.",
            ("outcome", "reason"),
            registry=registry,
        )
        self.update_bytes = Counter(
            "concilia_update_bytes", "Bytes of the files of updates folded into closed rounds.", registry=registry
        )
        self.seconds = Histogram(
            "concilia_round_seconds",
            "Seconds of a closed round: its longest training, all transfers, its transactions, folding, evaluating.",
            ("phase",),
            buckets=SECONDS,
            registry=registry,
        )
        for outcome in (CLOSED, ABORTED):
            self.rounds.labels(outcome)

    def rejected(self, reason: Reason) -> None:
        """An update was rejected on the ledger."""
        self.updates.labels("rejected", reason.name.lower()).inc()

    def closed(self, accepted: int, size: int, seconds: Mapping[str, float]) -> None:
        """A round was closed on so many updates of `size` bytes together; `seconds` by phase."""
        self.rounds.labels(CLOSED).inc()
        self.updates.labels("accepted", "none").inc(accepted)
        self.update_bytes.inc(size)
        for phase, spent in seconds.items():
            self.seconds.labels(phase).observe(spent)


def watch(
    registry: CollectorRegistry,
    jobs: Callable[[], Mapping[str, int]],
    nodes: Callable[[], Mapping[str, int]],
    queued: Callable[[], int],
) -> None:
    """Show jobs by phase, nodes by state, and how many looks at a job wait in the aggregator's queue."""

    def labelled(read: Callable[[], Mapping[str, int]]) -> Callable[[], dict[tuple[str, ...], float]]:
        return lambda: {(name,): count for name, count in read().items()}

    registry.register(AtScrape("concilia_jobs", "Jobs by phase.", ("phase",), labelled(jobs)))
    registry.register(
        AtScrape("concilia_nodes", "Nodes heard of lately (live), and not (silent).", ("state",), labelled(nodes))
    )
    registry.register(
        AtScrape(
            "concilia_queue_depth",
            "Tasks that wait in a queue for a worker.",
            ("queue",),
            labelled(lambda: {"aggregator": queued()}),
        )
    )

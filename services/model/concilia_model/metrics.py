"""What the model service measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from concilia_kit.metrics import SECONDS, AtScrape
from prometheus_client import CollectorRegistry, Counter, Histogram

FOUND = ("asked", "scrub")
"""How a changed file was found; `integrity.Found`."""


def show_storage(
    registry: CollectorRegistry, stored: Callable[[], Mapping[str, tuple[int, int]]], free: Callable[[], int]
) -> None:
    """Show what is stored, bytes and files by kind, and the bytes that are free; asked for at each scrape."""

    def part(index: int) -> Callable[[], dict[tuple[str, ...], float]]:
        return lambda: {(kind,): float(both[index]) for kind, both in stored().items()}

    words = "of the artifact store by kind: initial, global, trunk, update, spare, orphan, unfinished, quarantined."
    registry.register(AtScrape("concilia_store_bytes", f"Bytes {words}", ("kind",), part(0)))
    registry.register(AtScrape("concilia_store_files", f"Files {words}", ("kind",), part(1)))
    registry.register(
        AtScrape(
            "concilia_store_free_bytes", "Bytes free on the artifact store's disk.", (), lambda: {(): float(free())}
        )
    )


class ModelMetrics:
    """Bytes of artifacts, and predictions; without a registry they are counted and shown nowhere."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.bytes = Counter(
            "concilia_artifact_bytes",
            "Bytes of artifacts received whole and kept ('in'), and sent ('out').",
            ("direction",),
            registry=registry,
        )
        self.removed = Counter(
            "concilia_artifacts_removed",
            "Files of artifacts deleted by policy, 'update' or 'orphan'.",
            ("kind",),
            registry=registry,
        )
        self.corrupt = Counter(
            "concilia_artifacts_corrupt",
            "Files of artifacts found with other bytes than they are named after, when 'asked' or by the 'scrub'.",
            ("found",),
            registry=registry,
        )
        for found in FOUND:  # so that the first one is seen to be one more than none
            self.corrupt.labels(found)
        self.scrubbed = Counter("concilia_scrubbed_bytes", "Bytes of artifacts hashed by the scrub.", registry=registry)
        self.resealed = Counter(
            "concilia_artifacts_resealed",
            "Files of artifacts that lay plain or under an older key and were sealed anew.",
            registry=registry,
        )
        self.predictions = Counter(
            "concilia_predictions",
            "Pictures that reached the model: 'ok', or why there is no answer.",
            ("outcome",),
            registry=registry,
        )
        self.prediction_seconds = Histogram(
            "concilia_prediction_seconds",
            "Seconds of a prediction, with the wait for its turn.",
            buckets=SECONDS,
            registry=registry,
        )

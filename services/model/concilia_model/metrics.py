"""What the model service measures."""

from __future__ import annotations

from concilia_kit.metrics import SECONDS
from prometheus_client import CollectorRegistry, Counter, Histogram


class ModelMetrics:
    """Bytes of artifacts, and predictions; without a registry they are counted and shown nowhere."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.bytes = Counter(
            "concilia_artifact_bytes",
            "Bytes of artifacts received whole and kept ('in'), and sent ('out').",
            ("direction",),
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

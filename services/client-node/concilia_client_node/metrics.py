"""What a node measures of its work: numbers of tasks, images and seconds, for whoever runs it."""

from __future__ import annotations

from concilia_kit.metrics import SECONDS
from prometheus_client import CollectorRegistry, Counter, Histogram

TRAIN, EVALUATE, UNMASK = "train", "evaluate", "unmask"
STOPPED, RETRIED = "stopped", "retried"


class NodeMetrics:
    """Tasks and training; without a registry they are counted and shown nowhere."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.tasks = Counter(
            "concilia_node_tasks",
            "Attempts at a task: the stage it ended in, 'retried' where it will come again, 'stopped' with the node.",
            ("task", "outcome"),
            registry=registry,
        )
        self.training_seconds = Histogram(
            "concilia_node_training_seconds", "Seconds of a local training.", buckets=SECONDS, registry=registry
        )
        self.images = Counter("concilia_node_images", "Images of finished local trainings.", registry=registry)

"""What a strategy goes by beside updates and samples, as it is written into a global model's file.

Hospitals say how far their training reached and what the model's loss was before it; nobody can check that. So what
stands far out is bounded by the others' median, and who says nothing counts like it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Self

import rfc8785
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import LedgerUpdate, Reason
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.training import LocalTraining, UpdateMetrics
from pydantic import Field

from concilia_aggregator import strategies
from concilia_aggregator.strategies import Setting
from concilia_aggregator.strategies.geometry import Fact

FAR = 10.0
"""How many times the median, and how small a part of it, a hospital's reach may be."""


class RoundFacts(Wire):
    """Of a round's accepted updates, in the order of contributions. `root`: which one is trusted."""

    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    hospitals: int = Field(ge=0)
    reach: tuple[float, ...]
    first_loss: tuple[float | None, ...]
    root: int | None = Field(default=None, ge=0)
    # Left out where nobody told them: files of models from before there was such keep their bytes.
    class_counts: tuple[tuple[int, ...] | None, ...] | None = Field(
        default=None, exclude_if=lambda counts: counts is None
    )

    @classmethod
    def of(
        cls,
        told: Sequence[UpdateMetrics | None],
        hospitals: Sequence[str],
        local: LocalTraining,
        everybody: int,
        root: str | None,
    ) -> Self:
        """From what hospitals signed. `everybody`: how many hospitals the consortium has."""
        reach = [each.reach if each is not None else None for each in told]
        known = [each for each in reach if each is not None and each > 0]
        middle = statistics.median(known) if known else 1.0
        losses = [each.first_loss if each is not None else None for each in told]
        counts = tuple(each.class_counts if each is not None else None for each in told)
        return cls(
            learning_rate=local.learning_rate,
            hospitals=max(everybody, len(hospitals)),
            reach=tuple(min(max(each or middle, middle / FAR), middle * FAR) for each in reach),
            first_loss=tuple(losses),
            root=hospitals.index(root) if root in hospitals else None,
            class_counts=counts if any(each is not None for each in counts) else None,
        )

    def text(self) -> str:
        """Canonical JSON (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json")).decode()

    def facts(self, samples: Sequence[int]) -> list[Fact]:
        """Of each update. Raises `ValueError` where there are more or fewer updates."""
        counts = self.class_counts or (None,) * len(samples)
        if not len(samples) == len(self.reach) == len(self.first_loss) == len(counts):
            raise ValueError("the model's file says something of other updates than these")
        known = [each for each in self.first_loss if each is not None]
        usual = statistics.median(known) if known else None
        return [
            Fact(count, reach, usual if loss is None else loss, of_classes)
            for count, reach, loss, of_classes in zip(samples, self.reach, self.first_loss, counts, strict=True)
        ]

    def setting(self, number: int) -> Setting:
        """What the strategy is made with, in a round."""
        return Setting(LocalTraining(learning_rate=self.learning_rate), self.hospitals, number)


def claimed(item: LedgerUpdate) -> int:
    """The training images that a hospital says it has, in whatever it says: what a registration is to bound."""
    counts = () if item.metrics is None else item.metrics.class_counts or ()
    return max(item.update.samples, sum(counts))


def classes_told(spec: JobSpec) -> int | None:
    """Of how many classes hospitals are to tell their images, where a job's strategy goes by them."""
    asked = strategies.make(spec.strategy).local(spec.local).class_counts
    return len(spec.classification.classes) if asked else None


def miscounted(item: LedgerUpdate, classes: int | None) -> Reason | None:
    """Why an update has no credible weight that is to say how many images there are of so many classes."""
    if classes is None:
        return None
    counts = None if item.metrics is None else item.metrics.class_counts
    return None if counts is not None and len(counts) == classes and any(counts) else Reason.SAMPLE_COUNT


def is_other(
    facts: RoundFacts | None, hospitals: Sequence[str], told: Sequence[UpdateMetrics | None], root: str | None
) -> bool:
    """Whether a model was made by other facts than its hospitals signed, as far as all their words are known."""
    if facts is None or None in told:
        return False
    local = LocalTraining(learning_rate=facts.learning_rate)
    return RoundFacts.of(told, hospitals, local, facts.hospitals, root) != facts

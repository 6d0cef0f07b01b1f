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
from concilia_kit.wire.training import LocalTraining, UpdateMetrics
from pydantic import Field

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
        return cls(
            learning_rate=local.learning_rate,
            hospitals=max(everybody, len(hospitals)),
            reach=tuple(min(max(each or middle, middle / FAR), middle * FAR) for each in reach),
            first_loss=tuple(losses),
            root=hospitals.index(root) if root in hospitals else None,
        )

    def text(self) -> str:
        """Canonical JSON (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json")).decode()

    def facts(self, samples: Sequence[int]) -> list[Fact]:
        """Of each update. Raises `ValueError` where there are more or fewer updates."""
        if not len(samples) == len(self.reach) == len(self.first_loss):
            raise ValueError("the model's file says something of other updates than these")
        known = [each for each in self.first_loss if each is not None]
        usual = statistics.median(known) if known else None
        return [
            Fact(count, reach, usual if loss is None else loss)
            for count, reach, loss in zip(samples, self.reach, self.first_loss, strict=True)
        ]

    def setting(self, number: int) -> Setting:
        """What the strategy is made with, in a round."""
        return Setting(LocalTraining(learning_rate=self.learning_rate), self.hospitals, number)


def is_other(
    facts: RoundFacts | None, hospitals: Sequence[str], told: Sequence[UpdateMetrics | None], root: str | None
) -> bool:
    """Whether a model was made by other facts than its hospitals signed, as far as all their words are known."""
    if facts is None or None in told:
        return False
    local = LocalTraining(learning_rate=facts.learning_rate)
    return RoundFacts.of(told, hospitals, local, facts.hospitals, root) != facts

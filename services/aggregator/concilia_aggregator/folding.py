"""Folding updates into a global model, block by block over memory maps.

The peak is a few blocks whatever the number of hospitals or the size of the model. Same updates, same strategy: same
bytes, and so the same digest; the verifier calls this very function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rfc8785
from concilia_kit.tensorfile import TensorFile, TensorWriter
from concilia_kit.wire.jobs import Strategy as StrategySpec
from concilia_kit.wire.training import Architecture

from concilia_aggregator import strategies

_BLOCK = 1 << 18  # elements

ARCHITECTURE = "concilia.architecture"
ROUND = "concilia.round"
STRATEGY = "concilia.strategy"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a global model was made; written into its file, so that the file alone says how to make it again."""

    architecture: Architecture
    round: int
    strategy: StrategySpec

    def metadata(self) -> dict[str, str]:
        """The recipe as a safetensors file's metadata."""
        return {
            ARCHITECTURE: self.architecture.value,
            ROUND: str(self.round),
            STRATEGY: rfc8785.dumps(self.strategy.model_dump(mode="json")).decode(),
        }

    @classmethod
    def of(cls, model: TensorFile) -> Recipe:
        """The recipe in a global model's file. Raises `ValueError` where it carries none."""
        metadata = model.header.metadata
        try:
            return cls(
                Architecture(metadata[ARCHITECTURE]),
                int(metadata[ROUND]),
                StrategySpec.model_validate_json(metadata[STRATEGY]),
            )
        except KeyError as error:
            raise ValueError(f"{model.path.name} carries no recipe") from error


def fold(updates: Sequence[TensorFile], samples: Sequence[int], recipe: Recipe, target: Path) -> str:
    """Fold updates, given in the order of contributions, into `target`; returns the file's SHA-256.

    Names, shapes and dtypes must agree (see `screening`). Raises `ValueError` for no updates, `OSError`.
    """
    if not updates:
        raise ValueError("nothing to fold")
    strategy = strategies.make(recipe.strategy)
    specs = updates[0].header.tensors
    with TensorWriter(target, specs, recipe.metadata()) as writer:
        for name in writer.order:
            views = [update.flat(name) for update in updates]
            for start in range(0, specs[name].size, _BLOCK):
                writer.append(strategy.fold([view[start : start + _BLOCK] for view in views], samples))
    return writer.digest

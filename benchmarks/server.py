"""The aggregator's part of a simulated round, in memory: screening by the service's rules, then the service's strategy.

A model is one float32 vector of all its floating tensors and one of its counters: strategies go element by element or
by inner products of the whole, so that one block is as good as many.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from concilia_aggregator import exact, strategies
from concilia_aggregator.facts import RoundFacts
from concilia_aggregator.screening import Limits
from concilia_aggregator.strategies import Blockwise, Noised, Stateful, Weighing, fedbuff
from concilia_aggregator.strategies.base import fold_integers
from concilia_aggregator.strategies.geometry import Geometry, gram_of
from concilia_kit import gaussians
from concilia_kit.wire.chain import Reason
from concilia_kit.wire.strategy import Strategy as StrategySpec
from concilia_kit.wire.training import LocalTraining, UpdateMetrics

Floats = npt.NDArray[np.float32]
Counters = npt.NDArray[np.int64]
LIMITS = Limits(max_samples=1_000_000, max_norm_ratio=10.0)
"""The aggregator's usual settings."""


@dataclass(frozen=True)
class Model:
    """All floating tensors one after another, and all integers."""

    floats: Floats
    counters: Counters


class Layout:
    """Where a network's tensors lie in the vectors, in the order of their names."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self._shapes = {name: tensors[name].shape for name in sorted(tensors)}
        self._floating = [name for name in self._shapes if np.issubdtype(tensors[name].dtype, np.floating)]
        self._counting = [name for name in self._shapes if name not in self._floating]

    def model(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Model:
        """A copy of tensors as vectors."""
        return Model(
            np.concatenate([tensors[name].ravel() for name in self._floating]).astype(np.float32),
            np.concatenate([np.zeros(0, np.int64), *(tensors[name].ravel() for name in self._counting)]),
        )

    def tensors(self, model: Model) -> dict[str, npt.NDArray[Any]]:
        """Copies by name, in their shapes."""
        return {**self.named(model.floats), **self._parts(model.counters, self._counting)}

    def named(self, floats: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[Any]]:
        """Parts of a vector over the floating tensors, copied, by name."""
        return self._parts(floats, self._floating)

    def mask(self, which: Sequence[str] | frozenset[str]) -> npt.NDArray[np.bool_]:
        """Where in the vector of floats some tensors lie."""
        return np.concatenate([np.full(math.prod(self._shapes[name]), name in which) for name in self._floating])

    def _parts(self, vector: npt.NDArray[Any], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        found, start = {}, 0
        for name in names:
            stop = start + math.prod(self._shapes[name])
            found[name] = vector[start:stop].reshape(self._shapes[name]).copy()
            start = stop
        return found


@dataclass(frozen=True)
class Update:
    """What a hospital sends: its model, how many pictures it says that it has and registered, what it measured, and for
    FedBuff how many rounds it is late."""

    hospital: int
    model: Model
    samples: int
    registered: int
    reach: float | None
    first_loss: float | None
    staleness: int = 0
    class_counts: tuple[int, ...] | None = None


@dataclass
class Server:
    """Screens and folds, and remembers what its strategy does. `root`: whom FLTrust trusts; `statistics`: where batch
    normalisation's lie, which no strategy takes steps with that remembers."""

    spec: StrategySpec
    local: LocalTraining
    hospitals: int
    screened: bool
    root: int
    statistics: npt.NDArray[np.bool_]
    rejected: dict[str, int] = field(default_factory=dict)
    _state: list[Floats] = field(default_factory=list)

    def fold(self, base: Model, updates: Sequence[Update], number: int) -> tuple[Model, list[int]]:
        """The new model and whose updates went into it, of updates in the order of contributions.

        Raises `ValueError` where the service would have no model: no update is left, or one is not finite.
        """
        accepted = [each for each in updates if not self.screened or self._passes(each, base)]
        if not accepted:
            raise ValueError("no update is left")
        return self._folded(base, accepted, number), [each.hospital for each in accepted]

    @property
    def control(self) -> Floats | None:
        """SCAFFOLD's variate; None before the first round."""
        return self._state[0] if self._state else None

    def _passes(self, update: Update, base: Model) -> bool:
        reason = screen(update, base)
        if reason is not None:
            name = reason.name.lower()
            self.rejected[name] = self.rejected.get(name, 0) + 1
        return reason is None

    def _folded(self, base: Model, updates: Sequence[Update], number: int) -> Model:
        floats, samples = [each.model.floats for each in updates], [each.samples for each in updates]
        counters = fold_integers([each.model.counters for each in updates])
        if self.spec.asynchronous:
            weights = [fedbuff.weight(each.staleness) for each in updates]
            if rest := fedbuff.base_weight(weights):
                floats, weights = [*floats, base.floats], [*weights, rest]
            samples = weights
        facts = self._facts(updates)
        strategy = strategies.make(self.spec, facts.setting(number))
        if isinstance(strategy, Blockwise):
            return Model(strategy.fold(floats, samples), counters)
        geometry = Geometry(facts.facts(samples), lambda: gram_of(_differences(floats, base)), facts.root)
        if isinstance(strategy, Weighing):
            return Model(strategy.prepare(geometry).fold(floats, base.floats), counters)
        if isinstance(strategy, Noised):
            numbers = gaussians.keyed(secrets.token_bytes(gaussians.KEY_BYTES), 0, base.floats.size)
            return Model(strategy.noised(geometry).fold(floats, base.floats, numbers), base.counters)
        assert isinstance(strategy, Stateful), "there are four kinds"
        before = self._state or [np.zeros_like(base.floats) for _ in strategy.state]
        made, after = strategy.remember(geometry, number).step(floats, base.floats, before)
        mean = exact.weighted_mean([each[self.statistics] for each in floats], samples)
        made, after = made.copy(), [each.copy() for each in after]
        made[self.statistics] = mean
        for each in after:
            each[self.statistics] = 0
        if not np.isfinite(made).all():
            raise ValueError("the model is not finite")
        self._state = after
        return Model(made, counters)

    def _facts(self, updates: Sequence[Update]) -> RoundFacts:
        names = [str(each.hospital) for each in updates]
        told = [_metrics(each) for each in updates]
        return RoundFacts.of(told, names, self.local, self.hospitals, str(self.root))


def screen(update: Update, base: Model, limits: Limits = LIMITS) -> Reason | None:
    """Why the service would leave an update out, as `concilia_aggregator.screening` finds it of files."""
    claimed = max(update.samples, sum(update.class_counts or ()))
    if not 0 < claimed <= min(limits.max_samples, update.registered):
        return Reason.SAMPLE_COUNT
    squares = exact.squared_distance(update.model.floats, base.floats)
    if not math.isfinite(squares):
        return Reason.NON_FINITE
    norm = math.sqrt(exact.squared_distance(base.floats, None))
    return Reason.NORM_TOO_LARGE if math.sqrt(squares) > limits.max_norm_ratio * max(norm, 1.0) else None


def _differences(floats: Sequence[Floats], base: Model) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.stack(floats).astype(np.float64) - base.floats
    return found


def _metrics(update: Update) -> UpdateMetrics:
    """Only what strategies go by says anything here."""
    return UpdateMetrics(
        loss=0.0,
        accuracy=0.0,
        images=update.samples,
        lesions=0,
        skipped_images=0,
        epochs=1,
        seconds_download=0.0,
        seconds_training=0.0,
        seconds_upload=0.0,
        bytes_download=0,
        bytes_upload=0,
        reach=update.reach,
        first_loss=update.first_loss,
        class_counts=update.class_counts,
    )

"""What every strategy offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.exact import Sum
from concilia_aggregator.strategies.geometry import Geometry

Block = npt.NDArray[Any]
"""A one-dimensional stretch of a tensor, in the tensor's own dtype."""


@runtime_checkable
class Blockwise(Protocol):
    """A strategy that sees one block at a time: how local training is configured, and how updates become a model."""

    def local(self, local: LocalTraining) -> LocalTraining:
        """The hyperparameters that hospitals are given."""
        ...

    def fold(self, updates: Sequence[Block], samples: Sequence[int]) -> Block:
        """One block of the new global model from the same block of each update, in the order of contributions.

        All blocks have one shape and dtype, and so has the result. Deterministic to the last bit. Safe to call from
        several threads. Raises `ValueError` where there is nothing to fold or a value is not finite.
        """
        ...


class Folding(Protocol):
    """What a strategy that looked at updates whole does with each block of them."""

    def fold(self, updates: Sequence[Block], base: Block) -> Block:
        """As `Blockwise.fold`, with the same block of the model that was updated."""
        ...


@runtime_checkable
class Weighing(Protocol):
    """A strategy that looks at updates whole before it folds them block by block."""

    def local(self, local: LocalTraining) -> LocalTraining:
        """See `Blockwise.local`."""
        ...

    def prepare(self, geometry: Geometry) -> Folding:
        """What to do with each block, of at least one update. Deterministic to the last bit, on any machine."""
        ...


class Stepping(Protocol):
    """What a strategy that remembers does with each block."""

    def step(self, updates: Sequence[Block], base: Block, state: Sequence[Block]) -> tuple[Block, list[Block]]:
        """As `Folding.fold`, and the new state from the old one: float32 blocks, in the order of `Stateful.state`."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A strategy that remembers something of each floating tensor from round to round, beginning with zeros."""

    @property
    def state(self) -> tuple[str, ...]:
        """Names of what is remembered."""
        ...

    def local(self, local: LocalTraining) -> LocalTraining:
        """See `Blockwise.local`."""
        ...

    def remember(self, geometry: Geometry, round_: int) -> Stepping:
        """What to do with each block in a round, counted from 1. Deterministic to the last bit, on any machine."""
        ...


class Noising(Protocol):
    """What a strategy that adds noise does with each block."""

    def fold(self, updates: Sequence[Block], base: Block, gaussians: npt.NDArray[np.float64]) -> Block:
        """As `Folding.fold`, of a floating dtype, with a standard normal number for each element."""
        ...


@runtime_checkable
class Noised(Protocol):
    """A strategy that looks at updates whole, and adds noise to what they come to: of a secret key, with which alone
    it can be made again (`noising`)."""

    def local(self, local: LocalTraining) -> LocalTraining:
        """See `Blockwise.local`."""
        ...

    def noised(self, geometry: Geometry) -> Noising:
        """What to do with each block, of at least one update. Deterministic to the last bit, on any machine."""
        ...


Strategy = Blockwise | Weighing | Stateful | Noised


@runtime_checkable
class Additive(Blockwise, Protocol):
    """A strategy whose updates can be added up group by group, on several machines, and give the same bytes."""

    def sum(self, updates: Sequence[Block], samples: Sequence[int]) -> Sum:
        """What a group of updates comes to in one block, exactly. For dtypes that `exact.is_summed`."""
        ...

    def total(self, sums: Sequence[Sum], samples: int, dtype: np.dtype[Any]) -> Block:
        """One block of the new global model from all groups' sums; `samples` of all updates together."""
        ...


def fold_integers(updates: Sequence[Block]) -> Block:
    """Integer and boolean buffers: the largest value wins.

    They are counters (BatchNorm's `num_batches_tracked`), of which a weighted mean would make a number that nobody
    counted; the maximum does not depend on order and never runs backwards.
    """
    result = updates[0].copy()
    for update in updates[1:]:
        np.maximum(result, update, out=result)
    return result

"""What every strategy offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from concilia_kit.wire.training import LocalTraining

from concilia_aggregator.exact import Sum

Block = npt.NDArray[Any]
"""A one-dimensional stretch of a tensor, in the tensor's own dtype."""


class Strategy(Protocol):
    """How local training is configured and how updates become a global model."""

    def local(self, local: LocalTraining) -> LocalTraining:
        """The hyperparameters that hospitals are given."""
        ...

    def fold(self, updates: Sequence[Block], samples: Sequence[int]) -> Block:
        """One block of the new global model from the same block of each update, in the order of contributions.

        All blocks have one shape and dtype, and so has the result. Deterministic to the last bit. Safe to call from
        several threads. Raises `ValueError` where there is nothing to fold or a value is not finite.
        """
        ...


@runtime_checkable
class Additive(Strategy, Protocol):
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

"""The inner products of updates' differences from their base, in one pass over the files (`strategies.geometry`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from concilia_kit.tensorfile import TensorSpec

from concilia_aggregator.strategies.geometry import CHUNK, Matrix, products
from concilia_aggregator.windows import Input, Window, stream


def gram(inputs: Sequence[Input], base: Input, specs: Mapping[str, TensorSpec], threads: int | None = None) -> Matrix:
    """Float64, n by n, over all floating tensors. Neither the number of threads nor the size of windows changes a bit:
    products are of the same `CHUNK` elements of a tensor, and are added up in one order.

    Raises `NotFinite`, `KeyError`, `MalformedFile`.
    """
    count = len(inputs)

    def work(window: Window) -> npt.NDArray[np.float64]:
        start = base.block(window).astype(np.float64)
        rows = np.stack([each.block(window).astype(np.float64) - start for each in inputs])
        parts = [products(np.ascontiguousarray(rows[:, at : at + CHUNK])) for at in range(0, rows.shape[1], CHUNK)]
        return np.stack(parts) if parts else np.empty((0, count, count))

    total = np.zeros((count, count))
    order = sorted(name for name, spec in specs.items() if np.issubdtype(spec.dtype, np.floating))
    for parts in stream([*inputs, base], specs, order, work, threads, multiple=CHUNK):
        for part in parts:
            total += part
    return total

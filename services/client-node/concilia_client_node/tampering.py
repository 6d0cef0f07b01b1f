"""Signs of a model that was made to copy pictures into gradients, looked for before it is trained.

Whoever may hand out the model can do better than to look at updates: layers whose rows all measure one thing (the
brightness of a picture, say) and differ in their biases alone sort a batch's pictures into bins, and the difference of
two neighbouring rows' gradients is a picture, however large the batch (Fowl et al., "Robbing the Fed", ICLR 2022).
`networks.load` lets in no tensor that the architecture has not, so such a layer must be hidden in one that it has.
Looked for here is what the published attack needs there: rows that are copies of each other up to a factor, and rows
that are one number throughout; and numbers that are none, which no honest model has.

This finds that attack, and none that takes care to look like a trained model. What holds against those is how little an
update says: floors, secure aggregation, and noise.
"""

from __future__ import annotations

import itertools
import math
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from concilia_kit.tensorfile import MalformedFile, TensorFile

from concilia_client_node.errors import WeightsError

FEWEST_INPUTS = 16
"""Rows of fewer numbers may be alike by chance; kernels of 3 x 3 that smooth are."""
ALIKE = 0.9999
"""Cosine from which two rows are copies: 0.8 degrees. By chance, rows of 16 come so near once in 10^28."""
FADED = 1e-4
"""Rows shorter than that share of their layer's longest have died out in training, and measure nothing."""
DIRECTIONS, NEAR = 16, 0.995
"""Rows of many numbers are looked at in so few random directions first, which takes a hundredth of the time. Copies
whose cosine is below `NEAR` there are one pair in 10^9 (a quotient of two chi-squared variables of 16 degrees beyond
50), and rows that have nothing in common are above it once in 10^15."""
_PRODUCTS = 2**18
"""Of two blocks' numbers at a time: OpenBLAS shares out among threads what is more, and then they wait for each other
where other work has the processors, which cost four nodes on two of them most of a second each."""
_SMALL, _LARGE = 1e-12, 1e12
"""Between these, squares of a row's numbers can be added up in float32."""


def see_model(path: Path) -> None:
    """Raises `WeightsError` where a model's file has such signs, in one sentence, and `OSError`."""
    try:
        file = TensorFile.open(path)
    except MalformedFile:
        return  # whoever loads it says so
    for name, spec in file.header.tensors.items():
        if not np.issubdtype(spec.dtype, np.floating):
            continue
        values = file.flat(name)
        inputs = spec.size // max(spec.shape[0], 1) if len(spec.shape) >= 2 else 0
        rows = values.reshape(-1, inputs) if inputs >= FEWEST_INPUTS else values.reshape(1, -1)
        # A model has 100 MB: each look at its numbers is one pass over them, without copies.
        low, high = rows.min(axis=1, initial=np.inf), rows.max(axis=1, initial=-np.inf)
        if values.size and not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise WeightsError(f"the base model's tensor {name} has numbers that are not finite")
        if inputs >= FEWEST_INPUTS:
            _see_rows(name, rows, low.astype(np.float64), high.astype(np.float64))
        file.forget()


def _see_rows(name: str, rows: npt.NDArray[Any], low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> None:
    peaks = np.maximum(-low, high)
    if not peaks.any():
        return
    if rows.dtype != np.float32 or not _SMALL < peaks.max() < _LARGE:
        rows = (rows / peaks.max()).astype(np.float32)
        low, high, peaks = low / peaks.max(), high / peaks.max(), peaks / peaks.max()
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows).astype(np.float64))
    alive = np.flatnonzero(lengths > FADED * lengths.max())
    if (high[alive] - low[alive] <= 1e-4 * peaks[alive]).any():
        raise WeightsError(
            f"the base model's layer {name} has rows of one number throughout, as models have that are made to single "
            "out pictures"
        )
    if _has_copies(rows, lengths, alive):
        raise WeightsError(
            f"the base model's layer {name} has rows that are copies of each other, as models have that are made "
            "to single out pictures"
        )


def _has_copies(rows: npt.NDArray[np.float32], lengths: npt.NDArray[np.float64], alive: npt.NDArray[np.int64]) -> bool:
    """Whether two of the rows that are alive point the same way, or opposite ways."""
    # Of the system's randomness: who knew the directions could make copies that are apart in them.
    generator = np.random.default_rng(secrets.randbits(128))
    directions = generator.standard_normal((rows.shape[1], DIRECTIONS), np.float32)
    few = max(_PRODUCTS // directions.size, 1)
    reach = np.concatenate([rows[start : start + few] @ directions for start in range(0, len(rows), few)])[alive]
    reach /= np.linalg.norm(reach, axis=1, keepdims=True)
    side = 2 ** int(math.log2(_PRODUCTS / DIRECTIONS) / 2)
    for start, begin in itertools.combinations_with_replacement(range(0, len(alive), side), 2):
        near = reach[start : start + side] @ reach[begin : begin + side].T
        if start == begin:
            np.fill_diagonal(near, 0)  # each is like itself
        if max(near.max(), -near.min()) < NEAR:
            continue
        for one, other in np.argwhere(np.abs(near) >= NEAR).tolist():
            a, b = alive[start + one], alive[begin + other]
            if abs(float(rows[a] @ rows[b])) > ALIKE * lengths[a] * lengths[b]:
                return True
    return False

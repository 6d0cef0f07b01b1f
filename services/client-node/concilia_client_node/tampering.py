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

from pathlib import Path

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
_BLOCK = 1024


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
        if not np.isfinite(values).all():
            raise WeightsError(f"the base model's tensor {name} has numbers that are not finite")
        if len(spec.shape) >= 2 and spec.size // max(spec.shape[0], 1) >= FEWEST_INPUTS:
            _see_rows(name, values.reshape(spec.shape[0], -1).astype(np.float32))


def _see_rows(name: str, rows: npt.NDArray[np.float32]) -> None:
    longest = float(np.abs(rows).max())
    if not longest:
        return
    rows = rows / longest  # squares of what float32 can hold are beyond it
    lengths = np.linalg.norm(rows, axis=1)
    rows = rows[lengths > FADED * lengths.max()]
    if (np.ptp(rows, axis=1) <= 1e-4 * np.abs(rows).max(axis=1)).any():
        raise WeightsError(
            f"the base model's layer {name} has rows of one number throughout, as models have that are made to single "
            "out pictures"
        )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for start in range(0, len(rows), _BLOCK):
        alike = np.abs(rows[start : start + _BLOCK] @ rows.T) > ALIKE
        if np.count_nonzero(alike) > len(alike):  # each is like itself
            raise WeightsError(
                f"the base model's layer {name} has rows that are copies of each other, as models have that are made "
                "to single out pictures"
            )

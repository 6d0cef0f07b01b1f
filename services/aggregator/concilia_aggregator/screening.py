"""Whether an update may be averaged: pure checks of mapped tensors against the base model.

Rules, in the order they apply: same names, same shapes, same dtypes, a credible sample count, only finite values, a
bounded distance from the base. The first that fails is the reason that goes on the chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import Reason

_BLOCK = 1 << 18  # elements; two float64 temporaries of it stay in a core's cache


@dataclass(frozen=True, slots=True)
class Limits:
    """What screening tolerates.

    `max_samples`: most samples an update may claim at all; `max_norm_ratio`: most it may move the model, in multiples
    of the base model's L2 norm.
    """

    max_samples: int
    max_norm_ratio: float


def screen(
    update: TensorFile, base: TensorFile, samples: int, registered_samples: int | None, limits: Limits
) -> Reason | None:
    """Why an update is left out, or None where it is fine.

    `registered_samples` is the training images the hospital's node registered, where it did.
    """
    if set(update) != set(base):
        return Reason.NAME_MISMATCH
    for name, spec in base.header.tensors.items():
        given = update.header.tensors[name]
        if given.shape != spec.shape:
            return Reason.SHAPE_MISMATCH
        if given.dtype != spec.dtype:
            return Reason.DTYPE_MISMATCH
    most = limits.max_samples if registered_samples is None else min(limits.max_samples, registered_samples)
    if not 0 < samples <= most:
        return Reason.SAMPLE_COUNT
    moved, norm = _distance(update, base)
    if not math.isfinite(moved):
        return Reason.NON_FINITE
    # A fresh base may be all zero; one unit then stands for its norm.
    if moved > limits.max_norm_ratio * max(norm, 1.0):
        return Reason.NORM_TOO_LARGE
    return None


def _distance(update: TensorFile, base: TensorFile) -> tuple[float, float]:
    """L2 norms of (update - base) and of base over all float tensors, in one pass; not finite if any value is not."""
    moved = norm = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for name, spec in base.header.tensors.items():
            if not np.issubdtype(spec.dtype, np.floating):
                continue
            ours, theirs = base.flat(name), update.flat(name)
            for start in range(0, spec.size, _BLOCK):
                a = ours[start : start + _BLOCK].astype(np.float64)
                b = theirs[start : start + _BLOCK].astype(np.float64)
                norm += float(a @ a)
                b -= a
                moved += float(b @ b)
    return math.sqrt(moved) if math.isfinite(moved) else math.inf, math.sqrt(norm)

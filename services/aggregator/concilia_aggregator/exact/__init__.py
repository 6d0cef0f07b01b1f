"""Weighted means that are correctly rounded, and weighted sums that are exact.

A mean's every element is the exact rational `sum(n_i * x_i) / sum(n_i)`, rounded once, to nearest with ties to even, in
the blocks' dtype. That is one value, so neither the order of the blocks nor how they are grouped can change a bit. A
zero is negative only where every update's element is a negative zero, as IEEE 754 addition has it.

How: float32 times a whole number below 2^29 is exact in float64; sums are too, nearly always, which is looked at for
each addition (Dekker, "A floating-point technique for extending the available precision", Numerische Mathematik 18,
1971). The elements where it is not so are added up again as whole numbers (a long accumulator: Kulisch, "Computer
Arithmetic and Validity", 2008). Quotients are rounded to odd first (Boldo, Melquiond 2008).
"""

from __future__ import annotations

from concilia_aggregator.exact.kernels import Block
from concilia_aggregator.exact.mean import (
    NotFinite,
    Sum,
    is_summed,
    mean_of,
    squared_distance,
    weighted_mean,
    weighted_sum,
)

__all__ = [
    "Block",
    "NotFinite",
    "Sum",
    "is_summed",
    "mean_of",
    "squared_distance",
    "weighted_mean",
    "weighted_sum",
]

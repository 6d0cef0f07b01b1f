"""How updates lie to each other: the inner products of their differences from the base, and nothing else of them.

Every rule that goes by norms, distances or angles, and answers with a combination of updates, can be computed from an
n-by-n matrix: one pass over the files, however large the model, and none for each step of an iteration.

The matrix is the same on every machine. Differences are taken apart into two whole numbers of 20 bits, whose products
float64 adds up without rounding, in whatever order a BLAS likes (Ozaki, Ogita, Oishi, Rump, "Error-free transformations
of matrix multiplication by using fast routines of matrix multiplication", Numerical Algorithms 59, 2012); what is left
out is below 2^-39 of each row's largest value in a stretch of `CHUNK` elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from concilia_aggregator.exact import NotFinite

Matrix = npt.NDArray[np.float64]

CHUNK = 4096
"""Elements whose products are added up at a time: 2^12 products of 2^40 stay below 2^53."""
_BITS = 20


@dataclass(frozen=True, slots=True)
class Fact:
    """What a hospital says of its update beside the tensors, signed with it: `reach`, the sum of what its gradients'
    weights came to in the difference (for steps of plain SGD their number times the learning rate), the model's `loss`
    on its images before it trained, and its training images by class; None where it does not say."""

    samples: int
    reach: float | None = None
    loss: float | None = None
    class_counts: tuple[int, ...] | None = None


class Geometry:
    """Of a round's updates, in the order of contributions: the `facts`, which one is trusted (`root`), where one is,
    and `gram`, the inner products of their differences from the base: float64, n by n, symmetric.

    `measure` makes the matrix, when it is first asked for: not every strategy does.
    """

    def __init__(self, facts: Sequence[Fact], measure: Callable[[], Matrix], root: int | None = None) -> None:
        self.facts = tuple(facts)
        self.root = root
        self._measure = measure
        self._gram: Matrix | None = None

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def gram(self) -> Matrix:
        """Measured once."""
        if self._gram is None:
            self._gram = self._measure()
        return self._gram

    @property
    def samples(self) -> list[int]:
        """Of each update."""
        return [fact.samples for fact in self.facts]

    def norms(self) -> list[float]:
        """How far each update is from the base."""
        return [math.sqrt(max(float(self.gram[i, i]), 0.0)) for i in range(len(self))]

    def squared_distances(self) -> Matrix:
        """Between any two updates, n by n; 0 to itself."""
        squares = np.diagonal(self.gram)
        found = np.maximum(squares[:, None] + squares[None, :] - 2 * self.gram, 0.0)
        np.fill_diagonal(found, 0.0)
        return found

    def squared_distances_to(self, coefficients: Sequence[float]) -> list[float]:
        """Of each update to `base + sum(coefficients[j] * (update_j - base))`."""
        reach = [math.fsum(np.multiply(row, coefficients).tolist()) for row in self.gram]
        own = math.fsum(c * r for c, r in zip(coefficients, reach, strict=True))
        return [max(own - 2 * reach[i] + float(self.gram[i, i]), 0.0) for i in range(len(self))]

    def mixed(self, groups: Sequence[Sequence[int]]) -> Geometry:
        """Of the means of groups of updates. Who is trusted is not known of a mean."""
        size = len(groups)
        gram = np.empty((size, size))
        for i, some in enumerate(groups):
            for j in range(i + 1):
                both = self.gram[np.ix_(list(some), list(groups[j]))]
                gram[i, j] = gram[j, i] = math.fsum(both.ravel().tolist()) / (len(some) * len(groups[j]))
        return Geometry([Fact(sum(self.facts[j].samples for j in some)) for some in groups], lambda: gram)


def products(differences: Matrix) -> Matrix:
    """The Gram matrix of rows of at most `CHUNK` elements. Raises `NotFinite`."""
    largest = np.max(np.abs(differences), axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise NotFinite("an update has a value that is infinite or no number")
    exponents = np.frexp(largest)[1]
    scaled = np.ldexp(differences, (_BITS - exponents)[:, None])
    high = np.rint(scaled)
    low = np.rint(np.ldexp(scaled - high, _BITS))
    crossed = high @ low.T
    found = high @ high.T + np.ldexp(crossed + crossed.T, -_BITS) + np.ldexp(low @ low.T, -2 * _BITS)
    result: Matrix = np.ldexp(found, exponents[:, None] + exponents[None, :] - 2 * _BITS)
    return result


def gram_of(differences: Matrix) -> Matrix:
    """The Gram matrix of differences that are in memory, n by d: what `measuring` finds by streaming, to the bit."""
    gram = np.zeros((len(differences), len(differences)))
    for start in range(0, differences.shape[1], CHUNK):
        gram += products(np.ascontiguousarray(differences[:, start : start + CHUNK]))
    return gram

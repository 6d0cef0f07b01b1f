"""Updates by hypothesis, and the others' implementations: ByzFL and Flower, in an environment of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from concilia_aggregator.strategies.base import Folding
from concilia_aggregator.strategies.geometry import Fact, Geometry, gram_of
from hypothesis import strategies as st

Wide = npt.NDArray[np.float64]

CASES = 1000


@dataclass(frozen=True)
class Round:
    """`updates`, n by d, of a `base`; float64."""

    base: Wide
    updates: Wide
    samples: tuple[int, ...]

    @property
    def differences(self) -> Wide:
        """What the others are given."""
        return self.updates - self.base

    def geometry(self, root: int | None = None) -> Geometry:
        """Of the updates."""
        return Geometry([Fact(each) for each in self.samples], lambda: gram_of(self.differences), root)

    def folded(self, folding: Folding) -> Wide:
        """The new model."""
        return folding.fold(list(self.updates), self.base)

    def permuted(self, order: list[int]) -> Round:
        """The same updates in another order."""
        return Round(self.base, self.updates[order], tuple(self.samples[each] for each in order))


@st.composite
def rounds(draw: st.DrawFn, least: int = 3, most: int = 12) -> Round:
    """Rounds whose updates are spread around a common direction, some of them far away, as under attack."""
    count, size = draw(st.integers(least, most)), draw(st.integers(1, 24))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = source.normal(size=size)
    spread = draw(st.sampled_from([0.1, 1.0, 5.0]))
    updates = base + source.normal(size=size) + spread * source.normal(size=(count, size))
    for index in range(draw(st.integers(0, count // 2))):
        updates[index] = base + source.normal(size=size) * draw(st.sampled_from([1.0, 30.0, 1000.0]))
    samples = tuple(draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count)))
    order = source.permutation(count)
    return Round(base, updates[order], samples)


def close(ours: Wide, theirs: Wide, among: Round) -> None:
    """To 1e-6 of the largest value there is."""
    scale = max(1.0, float(np.abs(among.updates).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * scale)

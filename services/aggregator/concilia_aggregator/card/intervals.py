"""How far a share may be off that was found on so many pictures; pure.

Sources: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (JASA 22, 1927) for one share;
for a mean of independent ones, Newcombe's square-and-add of Wilson's limits (Statistics in Medicine 17, 1998, p. 873,
method 10) as Zou and Donner generalise it (MOVER, Statistics in Medicine 27, 2008). Unlike a bootstrap, both say
something where a class has few pictures, all of them right; they hold the truth a little less often than they say
where every class has a handful: 93 times in 100 with nine each, 91 where nearly all are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959963984540054
"""Of 95 per cent, two-sided."""


class Interval(NamedTuple):
    """A share with the limits of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, of: int) -> Interval:
    """The share `hits / of`. Raises `ValueError` where that is none."""
    if not 0 <= hits <= of or not of:
        raise ValueError(f"{hits} of {of} is no share")
    share, spread = hits / of, Z * Z / of
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    # Rounding may leave the limits of 0 and 1 a hair beside them.
    return Interval(share, 0.0 if hits == 0 else min(low, share), 1.0 if hits == of else max(high, share))


def mean(shares: Sequence[Interval]) -> Interval:
    """The mean of independent shares. Raises `ValueError` for none."""
    if not shares:
        raise ValueError("no shares")
    value = math.fsum(each.value for each in shares) / len(shares)
    below = math.sqrt(math.fsum((each.value - each.low) ** 2 for each in shares)) / len(shares)
    above = math.sqrt(math.fsum((each.high - each.value) ** 2 for each in shares)) / len(shares)
    return Interval(value, max(0.0, value - below), min(1.0, value + above))


def recalls(confusion: Sequence[Sequence[int]]) -> list[Interval | None]:
    """Each class's recall from a confusion matrix, rows true; None of a class without pictures."""
    return [wilson(row[place], sum(row)) if sum(row) else None for place, row in enumerate(confusion)]


def balanced_accuracy(confusion: Sequence[Sequence[int]]) -> Interval | None:
    """The mean recall of the classes that have pictures (Brodersen et al. 2010); None where none has."""
    present = [each for each in recalls(confusion) if each is not None]
    return mean(present) if present else None


def accuracy(confusion: Sequence[Sequence[int]]) -> Interval | None:
    """The share of pictures that were told right; None where there are none."""
    of = sum(map(sum, confusion))
    return wilson(sum(row[place] for place, row in enumerate(confusion)), of) if of else None

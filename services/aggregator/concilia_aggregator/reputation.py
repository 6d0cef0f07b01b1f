"""What each hospital's update was worth to a round, and how far it stands out: to be shown to people, and for no
strategy to go by.

All of it follows from how the updates lie to each other (`strategies.geometry`); no model is evaluated and no image is
needed. It says how an update relates to what the round came to, not how good the model became: a round of which most
are wrong agrees with the wrong.

Sources: Shapley, "A Value for n-Person Games" (1953); Xu, Lyu, Ma, Miao, Foo, Low, "Gradient-Driven Rewards to
Guarantee Fairness in Collaborative Machine Learning", NeurIPS 2021 (a coalition is worth the cosine of its mean to
everybody's); Castro, Gómez, Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from concilia_aggregator.strategies.combining import shares
from concilia_aggregator.strategies.geometric_median import GeometricMedian
from concilia_aggregator.strategies.geometry import Geometry, Matrix

EXACT = 8
"""Up to so many hospitals every order is counted; beyond, orders are drawn."""
BUDGET = 2000
"""Orders drawn at most."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one update in its round.

    `samples`: its share of all. `length`: of its difference from the base, by the median of all. `agreement`: the
    cosine of its difference and the round's, -1 to 1. `shapley`: its part of the agreement of all with the round's,
    together 1. `without`: how far the round's change would be without it, by the length of that change. `anomaly`: how
    far it is from the geometric median, by the median of all; above 3 is far.
    """

    samples: float
    length: float
    agreement: float
    shapley: float
    without: float
    anomaly: float


def standings(geometry: Geometry, seed: int = 0, budget: int = BUDGET) -> list[Standing]:
    """Of a round's updates, in their order, with FedAvg's mean for what the round came to; 0 where there is no saying.
    `budget`: orders drawn for the Shapley values of more than `EXACT` hospitals. Repeatable under a seed."""
    gram, weights = geometry.gram, shares(geometry.samples)
    norms = geometry.norms()
    whole = _length(gram, weights)
    middle = _median(norms)
    centre = GeometricMedian().coefficients(geometry)
    ways = [math.sqrt(square) for square in geometry.squared_distances_to(centre)]
    usual = _median(ways)
    values = shapley(gram, geometry.samples, seed, budget)
    found = []
    for index, norm in enumerate(norms):
        towards = _product(gram, weights, index)
        found.append(
            Standing(
                samples=weights[index],
                length=_over(norm, middle),
                agreement=_over(towards, norm * whole),
                shapley=values[index],
                without=_over(_shift(gram, geometry.samples, weights, index), whole),
                anomaly=_over(ways[index], usual),
            )
        )
    return found


def shapley(gram: Matrix, samples: Sequence[int], seed: int = 0, budget: int = BUDGET) -> list[float]:
    """Each hospital's Shapley value where a coalition is worth the cosine of its mean to everybody's: exact over all
    orders up to `EXACT` hospitals, by `budget` drawn ones and their reverses beyond. They add up to 1, or are 0."""
    count = len(samples)
    whole = shares(samples)
    reach, length = [_product(gram, whole, index) for index in range(count)], _length(gram, whole)
    if length == 0:
        return [0.0] * count
    totals: list[list[float]] = [[] for _ in range(count)]
    orders = 0
    for order in _orders(count, seed, budget):
        orders += 1
        towards = square = before = 0.0
        inside: list[int] = []
        for index in order:
            # Of the sum so far, not the mean: a cosine does not know the difference.
            towards += samples[index] * reach[index]
            square += samples[index] ** 2 * float(gram[index, index])
            square += 2 * samples[index] * math.fsum(samples[each] * float(gram[index, each]) for each in inside)
            inside.append(index)
            worth = towards / (math.sqrt(square) * length) if square > 0 else 0.0
            totals[index].append(worth - before)
            before = worth
    return [math.fsum(each) / orders for each in totals]


def _orders(count: int, seed: int, budget: int) -> Iterator[Sequence[int]]:
    if count <= EXACT:
        yield from itertools.permutations(range(count))
        return
    source = random.Random(seed)  # noqa: S311 - an estimate is to be repeatable
    for _ in range(max(budget // 2, 1)):
        order = list(range(count))
        source.shuffle(order)
        yield order
        yield order[::-1]


def _product(gram: Matrix, weights: Sequence[float], index: int) -> float:
    return math.fsum(weight * float(gram[index, at]) for at, weight in enumerate(weights))


def _length(gram: Matrix, weights: Sequence[float]) -> float:
    square = math.fsum(weight * _product(gram, weights, index) for index, weight in enumerate(weights))
    return math.sqrt(max(square, 0.0))


def _shift(gram: Matrix, samples: Sequence[int], weights: Sequence[float], without: int) -> float:
    """How far the mean moves where one update is left out."""
    rest = [0 if index == without else count for index, count in enumerate(samples)]
    if not any(rest):
        return 0.0
    left = shares(rest)
    return _length(gram, [mine - other for mine, other in zip(weights, left, strict=True)])


def _over(value: float, by: float) -> float:
    return value / by if by > 0 else 0.0


_median: Callable[[Sequence[float]], float] = statistics.median

"""What differentially private training costs: epsilon of all its steps together, by Google's dp-accounting; pure.

Neighbours differ by one lesion. What is accounted for are Gaussian mechanisms on Poisson samples (Abadi et al., "Deep
Learning with Differential Privacy", CCS 2016), composed by their privacy loss distributions (Koskela et al. 2020;
Doroshenko et al., "Connect the Dots", PoPETs 2022), rounded to the pessimistic side: what is said is never less than
what was spent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from concilia_client_node.sampling import Sampled

LARGE = 50.0
"""Where epsilon may be larger, its bound by Rényi's divergence (Mironov et al. 2019) is told in place of it: there is
nothing to be said of so weak a promise, and its distribution takes gigabytes."""

# It warns of every order that it leaves out of the bound, which makes the bound larger and not smaller.
logging.getLogger("absl").setLevel(logging.ERROR)


def epsilon(spent: Iterable[Sampled], delta: float) -> float:
    """Epsilon at `delta` of all that was done to the same lesions, 0 of nothing; infinite where there is no bound."""
    steps: Counter[tuple[float, float]] = Counter()
    for each in spent:
        steps[each.noise, each.rate] += each.steps
    return _of(tuple(sorted(steps.items())), delta) if steps else 0.0


def noise_for(wanted: float, delta: float, rate: float, steps: int) -> float:
    """The least noise, in multiples of the clipping norm and to a thousandth, at which so many steps cost no more than
    `wanted`."""

    def cost(noise: float) -> float:
        return epsilon([Sampled(noise=noise, clip=1, rate=rate, steps=steps)], delta)

    low, high = 0.1, 1.0
    while cost(high) > wanted:
        low, high = high, 2 * high
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > wanted else (low, middle)
    return high


@lru_cache(256)
def _of(steps: tuple[tuple[tuple[float, float], int], ...], delta: float) -> float:
    """Of steps by noise and rate: their order makes no difference to what they cost, but for rounding."""
    event = dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), count
            )
            for (noise, rate), count in steps
        ]
    )
    bound = RdpAccountant()
    bound.compose(event)
    if not (large := bound.get_epsilon(delta)) <= LARGE:
        return float(large)
    accountant = PLDAccountant()
    accountant.compose(event)
    return float(accountant.get_epsilon(delta))

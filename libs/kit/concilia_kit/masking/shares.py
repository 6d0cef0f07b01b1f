"""Shamir's secret sharing of 16-byte secrets, over the integers modulo 2**255 - 19.

A share is the value at its holder's place (1 or more) of a polynomial of degree `threshold - 1` with random
coefficients, whose value at 0 is the secret. Fewer shares than the threshold fit every secret equally well.

Source: Shamir, "How to Share a Secret" (1979).
"""

from __future__ import annotations

import math
import secrets as system
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from concilia_kit.masking.errors import MaskingError

PRIME = 2**255 - 19
BYTES = 32
"""Of a share, big-endian."""
_SECRET = 16
_DRAWN = 48  # random bytes a coefficient: what the remainder favours is less than 2**-128

Random = Callable[[int], bytes]
"""So many random bytes."""


def split(
    secret: bytes, threshold: int, places: Sequence[int], random: Random = system.token_bytes
) -> dict[int, bytes]:
    """A share of 32 bytes for each place; any `threshold` of them give the secret back, fewer say nothing of it.

    Raises `ValueError` where the secret is not of 16 bytes, places are not different numbers from 1 to 2**32, or fewer
    than the threshold.
    """
    if len(secret) != _SECRET:
        raise ValueError(f"a secret has {_SECRET} bytes, and not {len(secret)}")
    if not 1 <= threshold <= len(places) or len(set(places)) != len(places):
        raise ValueError(f"a threshold of {threshold} does not fit {len(places)} places")
    if not all(1 <= place < 2**32 for place in places):
        raise ValueError("places are numbers from 1")
    drawn = random(_DRAWN * (threshold - 1))
    coefficients = [
        int.from_bytes(drawn[start : start + _DRAWN], "big") % PRIME for start in range(0, len(drawn), _DRAWN)
    ]
    coefficients.append(int.from_bytes(secret, "big"))
    return {place: _value(coefficients, place).to_bytes(BYTES, "big") for place in places}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of `threshold` of these shares by place (those of the lowest places).

    Raises `MaskingError` where they are too few, or give no secret of 16 bytes: a share is wrong, or of another one.
    """
    if len(shares) < threshold:
        raise MaskingError(f"{len(shares)} shares are too few, {threshold} are needed")
    places = tuple(sorted(shares)[:threshold])
    values = [int.from_bytes(shares[place], "big") for place in places]
    total = sum(map(int.__mul__, at_zero(places), values)) % PRIME
    if total >> (8 * _SECRET):
        raise MaskingError("these shares are of no secret")
    return total.to_bytes(_SECRET, "big")


@lru_cache(maxsize=1024)
def at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients: what the values at these places are multiplied by to add up to the value at 0.

    Remembered: where all are neighbours the same holders have shares of all secrets.
    """
    found = []
    for place in places:
        others = [other for other in places if other != place]
        below = math.prod(other - place for other in others)
        found.append(math.prod(others) * pow(below, -1, PRIME) % PRIME)
    return tuple(found)


def _value(coefficients: Sequence[int], place: int) -> int:
    total = 0
    for each in coefficients:  # Horner's rule: the highest power first
        total = (total * place + each) % PRIME
    return total

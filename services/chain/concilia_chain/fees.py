"""What a transaction offers for its place in a block, and what replaces an offer that was too low. Pure.

Sources: EIP-1559; go-ethereum's pool, which takes a replacement from ten percent more on (both fees), others from
twelve and a half.
"""

from __future__ import annotations

from typing import NamedTuple

GWEI = 10**9
_ROOM = 2
"""Base fees grow by an eighth a block at most: twice today's has room for six full blocks."""


class Offer(NamedTuple):
    """Fees in wei a gas; `tip` is None on a chain without a base fee, where `most` is the plain gas price."""

    most: int
    tip: int | None


def offer(base: int | None, tip: int, price: int, cap: int) -> Offer:
    """A first offer at a base fee and a usual tip, or at a usual gas price; never above `cap` (wei a gas)."""
    if base is None:
        return Offer(min(price, cap), None)
    most = min(_ROOM * base + tip, cap)
    return Offer(most, min(tip, most))


def better(old: Offer, now: Offer, cap: int) -> Offer | None:
    """An offer that may replace `old`, at least `now`'s; None where the cap leaves no room for one."""
    most = max(_raised(old.most), now.most)
    if most > cap:
        # A last step up to the cap, if it is still large enough to replace the old one.
        most = cap
    if most < _raised(old.most):
        return None
    if old.tip is None:
        return Offer(most, None)
    tip = max(_raised(old.tip), now.tip or 0)
    return Offer(most, min(tip, most)) if min(tip, most) >= _raised(old.tip) else None


def _raised(fee: int) -> int:
    return fee + fee // 8 + 1

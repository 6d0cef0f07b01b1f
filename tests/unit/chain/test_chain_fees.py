"""What is offered for a gas, and what replaces it: never above the cap, and enough for a pool to take it."""

from __future__ import annotations

from concilia_chain import fees
from concilia_chain.fees import Offer
from hypothesis import given
from hypothesis import strategies as st

wei = st.integers(0, 10**13)
caps = st.integers(1, 10**13)


@given(base=st.none() | wei, tip=wei, price=wei, cap=caps)
def test_an_offer_is_never_above_the_cap(base: int | None, tip: int, price: int, cap: int) -> None:
    made = fees.offer(base, tip, price, cap)
    assert made.most <= cap
    assert (made.tip is None) == (base is None)
    if made.tip is not None:
        assert made.tip <= made.most
    if base is not None and 2 * base + tip <= cap:
        assert made == Offer(2 * base + tip, tip)


@given(old_most=wei, old_tip=st.none() | wei, base=wei, tip=wei, cap=caps)
def test_a_replacement_is_one_that_a_pool_takes(
    old_most: int, old_tip: int | None, base: int, tip: int, cap: int
) -> None:
    old = Offer(old_most, None if old_tip is None else min(old_tip, old_most))
    now = fees.offer(None if old.tip is None else base, tip, base, cap)
    made = fees.better(old, now, cap)
    if made is None:
        return
    assert made.most <= cap
    assert made.most * 8 > old.most * 9 - 8  # an eighth more, rounded up
    assert made.most >= min(now.most, cap)
    if old.tip is not None:
        assert made.tip is not None
        assert made.tip * 8 > old.tip * 9 - 8
        assert made.tip <= made.most


@given(base=st.integers(1, 10**12), tip=st.integers(0, 10**10))
def test_below_the_cap_there_is_always_a_replacement(base: int, tip: int) -> None:
    offer, cap = fees.offer(base, tip, 0, 10**15), 10**15
    for _ in range(20):
        better = fees.better(offer, fees.offer(base, tip, 0, cap), cap)
        assert better is not None
        assert better > offer
        offer = better


def test_at_the_cap_there_is_none() -> None:
    assert fees.better(Offer(100, 1), Offer(500, 1), 100) is None
    assert fees.better(Offer(99, 1), Offer(500, 1), 100) is None  # a step too small for any pool
    assert fees.better(Offer(80, 1), Offer(500, 1), 100) == Offer(100, 2)

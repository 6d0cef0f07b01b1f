"""Shamir's shares: as many as the threshold give the secret back, fewer fit any secret."""

from __future__ import annotations

import contextlib

import pytest
from concilia_kit.masking import MaskingError
from concilia_kit.masking.shares import PRIME, at_zero, combine, split
from hypothesis import given, settings
from hypothesis import strategies as st

secrets_ = st.binary(min_size=16, max_size=16)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, list[int], list[int]]:
    """A secret, a threshold, places, and some of these, as many as the threshold."""
    places = draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=14, unique=True))
    threshold = draw(st.integers(1, len(places)))
    chosen = draw(st.permutations(places))[:threshold]
    return draw(secrets_), threshold, places, list(chosen)


def value(points: dict[int, int], at: int) -> int:
    """The polynomial through these points, by Lagrange's formula as it is in every book."""
    total = 0
    for place, height in points.items():
        above = below = 1
        for other in points:
            if other != place:
                above, below = above * (at - other) % PRIME, below * (place - other) % PRIME
        total += height * above * pow(below, PRIME - 2, PRIME)
    return total % PRIME


@given(sharings())
def test_any_so_many_shares_give_the_secret_back(case: tuple[bytes, int, list[int], list[int]]) -> None:
    secret, threshold, places, chosen = case
    shares = split(secret, threshold, places)
    assert set(shares) == set(places)
    assert all(len(each) == 32 for each in shares.values())
    assert combine({place: shares[place] for place in chosen}, threshold) == secret


@given(sharings(), st.data())
def test_all_shares_lie_on_one_polynomial_of_that_degree(
    case: tuple[bytes, int, list[int], list[int]], data: st.DataObject
) -> None:
    secret, threshold, places, chosen = case
    shares = {place: int.from_bytes(each, "big") for place, each in split(secret, threshold, places).items()}
    points = {place: shares[place] for place in chosen}
    assert all(value(points, place) == shares[place] for place in places)
    assert value(points, 0) == int.from_bytes(secret, "big")


@given(sharings(), secrets_)
def test_fewer_fit_every_secret(case: tuple[bytes, int, list[int], list[int]], other: bytes) -> None:
    """For any other secret there is exactly one polynomial of the degree that goes through one share fewer: it is made
    here, and gives those very shares. Coefficients are uniform, so that no secret is likelier than another."""
    secret, threshold, places, chosen = case
    shares = split(secret, threshold, places)
    known = chosen[:-1]
    points = {0: int.from_bytes(other, "big"), **{place: int.from_bytes(shares[place], "big") for place in known}}
    completed = {place: value(points, place).to_bytes(32, "big") for place in places}
    assert all(completed[place] == shares[place] for place in known)
    assert combine({place: completed[place] for place in chosen}, threshold) == other


@settings(max_examples=20)
@given(secrets_)
def test_coefficients_are_drawn_over_the_whole_field(secret: bytes) -> None:
    """A share alone, of a threshold of two, is anywhere: over 64 drawings its first four bits take most values."""
    tops = {split(secret, 2, [1, 2])[1][0] >> 3 for _ in range(64)}
    assert len(tops) >= 6
    assert max(tops) <= 15  # below 2**255


def test_a_polynomial_with_known_coefficients() -> None:
    """5 + 3x + 2x²."""
    drawn = (2).to_bytes(48, "big") + (3).to_bytes(48, "big")
    shares = split((5).to_bytes(16, "big"), 3, [1, 2, 10], lambda count: drawn[:count])
    assert [int.from_bytes(shares[place], "big") for place in (1, 2, 10)] == [10, 19, 235]
    assert combine(shares, 3) == (5).to_bytes(16, "big")


def test_coefficients_at_zero() -> None:
    """Of 1 and 2: 2 and -1."""
    assert at_zero((1, 2)) == (2, PRIME - 1)


@given(sharings(), st.integers(0, 255))
def test_a_wrong_share_gives_another_secret_or_none(
    case: tuple[bytes, int, list[int], list[int]], flipped: int
) -> None:
    secret, threshold, places, chosen = case
    shares = {place: each for place, each in split(secret, threshold, places).items() if place in chosen}
    wrong = bytearray(shares[chosen[0]])
    wrong[-1] ^= flipped or 1
    shares[chosen[0]] = bytes(wrong)
    found: bytes | None = None
    with contextlib.suppress(MaskingError):  # it is of no secret
        found = combine(shares, threshold)
    assert found != secret


def test_too_few_shares() -> None:
    shares = split(bytes(16), 3, [1, 2, 3])
    with pytest.raises(MaskingError, match="too few"):
        combine({place: shares[place] for place in (1, 3)}, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "places"),
    [(bytes(15), 1, [1]), (bytes(16), 0, [1]), (bytes(16), 3, [1, 2]), (bytes(16), 1, [0]), (bytes(16), 2, [4, 4])],
)
def test_what_cannot_be_shared(secret: bytes, threshold: int, places: list[int]) -> None:
    with pytest.raises(ValueError, match=r"secret|threshold|places"):
        split(secret, threshold, places)

"""Masked words look like random ones, whatever is masked; and they are the keystream of a standard cipher."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from concilia_kit import masking
from concilia_kit.masking import Mask
from concilia_kit.masking.stream import Stream, apply
from hypothesis import given
from hypothesis import strategies as st

from tests.privacy.cohort import Cohort, Tensors

WORDS = 10**6
CHI_SQUARE = 377.08
"""What chi-square with 255 degrees of freedom exceeds once in a million (`scipy.stats.chi2.isf(1e-6, 255)`)."""
KOLMOGOROV = math.sqrt(math.log(2 / 1e-6) / 2)
"""Likewise for the distance of a distribution from its sample's, times the root of its size: a bound for any size
(Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality", 1990)."""

Words = npt.NDArray[np.uint32]


def chi_square(values: npt.NDArray[np.uint8]) -> float:
    expected = values.size / 256
    return float(np.sum((np.bincount(values, minlength=256) - expected) ** 2) / expected)


def distance(words: Words) -> float:
    """From the uniform distribution, times the root of how many there are."""
    sample = np.sort(words.astype(np.float64) + 0.5) / 2.0**32
    steps = np.arange(words.size + 1) / words.size
    return float(max(np.max(steps[1:] - sample), np.max(sample - steps[:-1]))) * math.sqrt(words.size)


def looks_random(words: Words) -> bool:
    each = words.view(np.uint8).reshape(-1, 4)
    return all(chi_square(each[:, at]) < CHI_SQUARE for at in range(4)) and distance(words) < KOLMOGOROV


def masked(folder: Path, trained: Tensors, start: Tensors) -> list[Words]:
    """The words that three hospitals send of the same model, as they lie in their files."""
    cohort = Cohort.of(3, folder, start=start)
    for each in cohort.members:
        each.trained = trained
    cohort.keys()
    cohort.shares()
    cohort.inputs()
    return [file.flat("w").view(np.uint32).copy() for file in cohort.given.values()]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e9])
def test_masked_words_are_as_random_ones(tmp_path: Path, value: float) -> None:
    start = {"w": np.zeros(WORDS, np.float32)}
    sent = masked(tmp_path, {"w": np.full(WORDS, value, np.float32)}, start)
    for words in sent:
        assert words.size == WORDS
        assert looks_random(words)
    assert looks_random(sent[0] - sent[1])  # nor do two of them say more together
    assert looks_random(sent[0] + sent[1])


def test_words_that_are_not_masked_do_not_look_random() -> None:
    """What the tests above would find."""
    rng = np.random.default_rng(1)
    assert looks_random(rng.integers(0, 2**32, WORDS, np.uint32))
    assert not looks_random(np.zeros(WORDS, np.uint32))
    assert not looks_random((rng.normal(size=WORDS) * 2**28).astype(np.int64).astype(np.uint32))
    assert not looks_random(rng.integers(0, 2**32 - 2**23, WORDS, np.uint32))
    biased = rng.integers(0, 2**32, WORDS, np.uint32)
    biased[: WORDS // 50] &= 0xFFFFFF00
    assert not looks_random(biased)


def test_without_self_masks_sums_of_pairs_come_out(tmp_path: Path) -> None:
    """The control: all three together, self-masks taken off, are the plain sum."""
    cohort = Cohort.of(3, tmp_path, start={"w": np.zeros(1000, np.float32)})
    cohort.keys()
    cohort.shares()
    cohort.inputs()
    total = np.zeros(1000, np.uint32)
    for each in cohort.members:
        words = cohort.given[each.hospital].flat("w").view(np.uint32).copy()
        own, *_ = masking.masks(each.secrets, cohort.roster, each.hospital, cohort.sharers)
        apply(words, 0, [own], off=True)
        total += words
    plain = sum((cohort.quantised(each, "w") for each in cohort.sharers), np.zeros(1000, np.int64))
    assert np.array_equal(total.view(np.int32), plain)


def test_the_keystream_is_the_standards() -> None:
    """NIST SP 800-38A, F.5.5 (CTR-AES256): its key and counter; here the counter is at 0, so the block cipher is
    asked at that counter's place: of what it enciphers, the vector's output blocks."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    blocks = [
        "0bdf7df1591716335e9a8b15c860c502",
        "5a6e699d536119065433863c8f657b94",
        "1bc12c9c01610d5d0d8bd6a3378eca62",
        "2956e1c8693536b1bee99c73a31576b6",
    ]
    words = np.zeros(16, np.uint32)
    apply(words, counter * 4, [Mask(key, 1)])
    assert words.astype("<u4").tobytes().hex() == "".join(blocks)


@given(start=st.integers(0, 200_000), size=st.integers(1, 70_000), cuts=st.lists(st.integers(0, 70_000), max_size=4))
def test_pieces_are_as_the_whole(start: int, size: int, cuts: list[int]) -> None:
    marks = [Mask(bytes(range(32)), 1), Mask(bytes(32), -1)]
    whole = np.arange(start + size, dtype=np.int32)
    apply(whole, 0, marks)
    pieces = np.arange(start + size, dtype=np.int32)[start:]
    edges = [0, *sorted(min(each, size) for each in cuts), size]
    stream = Stream(marks, start)
    for begin, end in itertools.pairwise(edges):
        stream.onto(pieces[begin:end])
    assert np.array_equal(pieces, whole[start:])
    apply(pieces, start, marks, off=True)
    assert np.array_equal(pieces, np.arange(start, start + size, dtype=np.int32))


def test_other_rounds_other_masks(tmp_path: Path) -> None:
    """Of one roster more a keystream would be used twice."""
    cohort = Cohort.of(4, tmp_path)
    first = cohort.keys()
    its = cohort.members[0]
    sharers = list(first.hospitals)
    before = masking.masks(its.secrets, first, its.hospital, sharers)
    second = cohort.keys(gone=[cohort.members[3].hospital])
    after = masking.masks(its.secrets, second, its.hospital, list(second.hospitals))
    assert {each.key for each in before}.isdisjoint(each.key for each in after)
    assert len({each.key for each in before}) == 4

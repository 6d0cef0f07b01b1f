"""Gradient inversion on updates' files: it rebuilds pictures from an unprotected one, and nothing from a masked one or
one with differential privacy. Small forms of `make bench-attacks`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.privacy_attacks import likeness, rebuilding
from benchmarks.privacy_attacks.inversion import Search, roughness
from benchmarks.privacy_attacks.likeness import Likeness
from benchmarks.privacy_attacks.membership import part
from benchmarks.privacy_attacks.rebuilding import BATCH, HOSPITALS, SIDE, Mode
from tests.privacy.attacked import lesions

SEARCH = Search(steps=120)


def attacked(mode: Mode) -> list[Likeness]:
    every = lesions(HOSPITALS * BATCH + 6, SIDE)
    some = part(every, np.arange(HOSPITALS * BATCH))
    others = part(every, np.arange(HOSPITALS * BATCH, len(every)))
    torch.set_num_threads(1)
    return list(rebuilding.attack(some, others, (mode,), SEARCH)[mode].likeness)


def mean(some: list[Likeness]) -> tuple[float, float]:
    return float(np.mean([each.psnr for each in some])), float(np.mean([each.ssim for each in some]))


def test_an_unprotected_update_gives_its_pictures_away() -> None:
    psnr, ssim = mean(attacked(Mode.NOTHING))
    assert psnr >= 20
    assert ssim >= 0.6


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of pooling under vmap
@pytest.mark.parametrize("mode", [Mode.WORDS, Mode.PRIVATE])
def test_the_same_attack_has_nothing_of_a_protected_one(mode: Mode) -> None:
    psnr, ssim = mean(attacked(mode))
    assert psnr <= 12
    assert ssim <= 0.2


def test_the_sum_of_a_cohort_is_worth_less_than_one_update() -> None:
    assert mean(attacked(Mode.SUM))[1] < 0.6


@pytest.mark.parametrize(("one", "other"), [(0.2, 0.8), (0.5, 0.5), (0.0, 1.0)])
def test_likeness_of_plain_pictures_is_what_the_formulas_say(one: float, other: float) -> None:
    """Wang et al. 2004, equation 13: of pictures without structure luminance is left, with C1 = 0.01^2."""
    a, b = torch.full((3, 32, 32), one), torch.full((3, 32, 32), other)
    assert likeness.ssim(a, b) == pytest.approx((2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4), abs=1e-3)
    if one != other:
        assert likeness.psnr(a, b) == pytest.approx(-20 * np.log10(abs(one - other)), abs=1e-3)


def test_rebuilt_pictures_are_matched_in_whatever_order_they_come() -> None:
    real = rebuilding.real(lesions(4, SIDE))
    assert torch.equal(likeness.matched(real[[2, 0, 3, 1]], real), real)
    assert likeness.matched(real[:1], real).shape == real.shape


def test_roughness_counts_steps_between_neighbours() -> None:
    flat = torch.zeros(1, 3, 4, 4)
    striped = flat.clone()
    striped[..., 1::2] = 1.0
    assert float(roughness(flat)) == 0
    assert float(roughness(striped)) == pytest.approx(1.0)

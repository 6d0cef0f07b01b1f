"""Property inference: how many of each class a hospital has is told from its update, and not from masked words or a
cohort's sum. Noise on lesions does not hide it: it is of all lesions together."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from benchmarks.privacy_attacks import heads
from benchmarks.privacy_attacks.heads import Shares
from benchmarks.privacy_attacks.membership import part
from tests.privacy.attacked import lesions

SIDE = 8


@cache
def errors() -> Shares:
    torch.set_num_threads(1)
    every = lesions(280, SIDE)
    own, theirs = part(every, np.arange(140)), part(every, np.arange(140, 280))
    build = heads.linear(3 * SIDE * SIDE, 7)
    return heads.shares(own, theirs, build, shadows=40, victims=16, images=60, cohort=8, seed=0)


def test_an_unprotected_update_tells_class_shares() -> None:
    assert errors().plain < 0.75 * errors().guess


def test_masked_words_tell_none() -> None:
    assert errors().words > 0.9 * errors().guess


def test_a_sum_tells_hardly_more_of_one_hospital_than_a_guess() -> None:
    assert errors().total > 0.8 * errors().guess


def test_noise_on_lesions_does_not_hide_them() -> None:
    assert errors().private < 0.75 * errors().guess

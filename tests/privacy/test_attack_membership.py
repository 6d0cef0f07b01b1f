"""Membership inference (LiRA): it tells who an overfitted head was trained on, and not with differential privacy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from concilia_kit.wire.training import Balance, LocalTraining
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.privacy_attacks import heads, membership, payload
from tests.privacy.attacked import lesions

SIDE = 16
LESIONS = 120
MODELS = 16


TASK = LocalTraining(
    epochs=25, batch_size=30, learning_rate=0.03, weight_decay=0.0, balance=Balance.NONE, augment=False
)


def test_an_overfitted_head_tells_whom_it_was_trained_on() -> None:
    torch.set_num_threads(1)
    build = heads.linear(3 * SIDE * SIDE, 7)
    found = membership.attack(lesions(LESIONS, SIDE), build, TASK, MODELS, 0)
    assert found.fitted > found.accuracy
    assert found.auc > 0.75


def test_with_privacy_it_hardly_does() -> None:
    torch.set_num_threads(1)
    privacy = payload.privacy_for(heads.EPSILON, TASK, LESIONS // 2)
    build = heads.linear(3 * SIDE * SIDE, 7)
    found = membership.attack(lesions(LESIONS, SIDE), build, TASK, MODELS, 0, privacy)
    assert abs(found.auc - 0.5) < 0.1
    assert found.found < 0.02


def test_the_unit_is_the_lesion_with_all_its_pictures() -> None:
    """The ratio of a lesion that is in no other model's half is by what it does to the models that have it."""
    members = np.array([[True, False], [False, True], [True, False], [False, True]])
    scores = np.where(members, 5.0, 0.0) + np.array([[0.0, 0.1], [0.1, 0.0], [0.2, 0.1], [0.1, 0.2]])
    ratios = membership.ratio(scores, members)
    assert (ratios[members] > 0).all()
    assert (ratios[~members] < 0).all()


floats = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=20).map(np.array)


@given(floats, floats)
def test_the_area_is_how_often_a_member_is_above(positive: np.ndarray, negative: np.ndarray) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in positive for b in negative]
    assert membership.area(positive, negative) == pytest.approx(np.mean(pairs))


@given(floats, st.lists(st.integers(-5, 5).map(float), min_size=20, max_size=60).map(np.array), st.floats(0, 0.5))
def test_no_more_of_the_others_are_taken_for_members_than_is_said(
    positive: np.ndarray, negative: np.ndarray, rate: float
) -> None:
    found = membership.found_at(positive, negative, rate)
    thresholds = [*np.unique(negative), -np.inf]
    allowed = [float((positive > at).mean()) for at in thresholds if (negative > at).mean() <= rate]
    assert found == pytest.approx(max(allowed))

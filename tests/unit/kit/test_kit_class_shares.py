"""Class shares: what is added to logits is what makes answers right where classes come oftener or more seldom."""

from __future__ import annotations

import numpy as np
import pytest
from concilia_kit import class_shares


def test_the_answers_are_those_of_whoever_knows_the_shares() -> None:
    """Three normal distributions on a line, whose posteriors are known for any shares of the classes."""
    means, points = np.array([-1.0, 0.0, 2.0]), np.linspace(-4, 5, 50)[:, None]
    evidence = -((points - means) ** 2) / 2
    everybody, own = np.array([200, 700, 100]), np.array([5, 5, 90])

    def posterior(shares: np.ndarray) -> np.ndarray:
        found = np.exp(evidence) * shares / shares.sum()
        return found / found.sum(1, keepdims=True)

    logits = np.log(posterior(everybody)) + class_shares.shift(own.tolist(), everybody.tolist())
    answered = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(answered - posterior(own)).max() < 1e-12


def test_the_same_shares_change_nothing_and_none_is_no_proof_of_never() -> None:
    assert np.abs(class_shares.shift([3, 6, 9], [1, 2, 3])).max() < 1e-12
    never = class_shares.shift([0, 100], [50, 50])
    assert np.isfinite(never).all()
    assert never[0] == pytest.approx(np.log(0.5 / 100.5 / 0.5))


@pytest.mark.parametrize(("own", "everybody"), [((1, 2), (1, 2, 3)), ((-1, 2), (1, 2)), ((1, 2), (1, -2))])
def test_what_is_no_count_is_refused(own: tuple[int, ...], everybody: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="class"):
        class_shares.shift(own, everybody)

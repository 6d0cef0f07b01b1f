"""Epsilon is what dp-accounting says by another way, no less than the truth where that is known, and no more than
older bounds."""

from __future__ import annotations

import math

import pytest
from concilia_client_node import accounting
from concilia_client_node.sampling import Sampled, planned
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import Balance, LocalTraining
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

DELTA = 1e-5
TOLERANCE = 1e-3
PLANS = [(1.0, 0.05, 20), (0.8, 0.01, 500), (1.5, 0.2, 300), (4.0, 1.0, 10), (0.6, 0.02, 40), (2.0, 0.004, 5000)]


def spent(noise: float, rate: float, steps: int) -> Sampled:
    return Sampled(noise=noise, clip=1.0, rate=rate, steps=steps)


def by_distributions(parts: list[tuple[float, float, int]], *, upper: bool, interval: float = 1e-4) -> float:
    """Composed here, a part at a time; `upper`: rounded up, otherwise down."""
    found = pld.identity(value_discretization_interval=interval, pessimistic_estimate=upper)
    for noise, rate, steps in parts:
        one = pld.from_gaussian_mechanism(
            noise,
            sampling_prob=rate,
            pessimistic_estimate=upper,
            value_discretization_interval=interval,
            use_connect_dots=upper,
        )
        found = found.compose(one.self_compose(steps))
    return float(found.get_epsilon_for_delta(DELTA))


def analytic(noise: float) -> float:
    """Of one Gaussian mechanism, exactly: Balle and Wang, "Improving the Gaussian Mechanism" (ICML 2018), theorem 8."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta(epsilon: float) -> float:
        half = 1 / (2 * noise)
        return phi(half - epsilon * noise) - math.exp(epsilon) * phi(-half - epsilon * noise)

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > DELTA else (low, middle)
    return high


@pytest.mark.parametrize("plan", PLANS)
def test_epsilon_is_dp_accountings(plan: tuple[float, float, int]) -> None:
    told = accounting.epsilon([spent(*plan)], DELTA)
    assert told == pytest.approx(by_distributions([plan], upper=True), abs=TOLERANCE)
    assert told >= by_distributions([plan], upper=False) > 0


@pytest.mark.parametrize("plan", PLANS)
def test_epsilon_is_not_below_what_a_finer_count_gives(plan: tuple[float, float, int]) -> None:
    finer = by_distributions([plan], upper=True, interval=4e-5)
    assert finer - 1e-6 <= accounting.epsilon([spent(*plan)], DELTA) <= finer + TOLERANCE


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 5.0, 20.0])
def test_one_step_on_all_lesions_is_the_gaussian_mechanism(noise: float) -> None:
    told = accounting.epsilon([spent(noise, 1.0, 1)], DELTA)
    assert analytic(noise) <= told <= analytic(noise) + TOLERANCE


@pytest.mark.parametrize("plan", PLANS)
def test_epsilon_is_no_more_than_opacus_says_by_renyi(plan: tuple[float, float, int]) -> None:
    bound = RDPAccountant()
    bound.history = [plan]
    assert accounting.epsilon([spent(*plan)], DELTA) <= bound.get_epsilon(DELTA)


def test_rounds_and_jobs_of_several_kinds_add_up() -> None:
    parts = [(1.0, 0.05, 20), (2.0, 0.1, 5), (1.0, 0.05, 20), (1.3, 0.05, 40)]
    told = accounting.epsilon([spent(*part) for part in parts], DELTA)
    assert told == pytest.approx(by_distributions(parts, upper=True), abs=TOLERANCE)
    assert told >= by_distributions(parts, upper=False)
    assert told == accounting.epsilon([spent(*part) for part in reversed(parts)], DELTA)


def test_nothing_costs_nothing_and_little_noise_a_bound() -> None:
    assert accounting.epsilon([], DELTA) == 0
    plan = (0.3, 0.02, 300)
    told = accounting.epsilon([spent(*plan)], DELTA)
    assert told > accounting.LARGE
    assert by_distributions([plan], upper=True) <= told < math.inf


@settings(max_examples=5, deadline=None)
@given(st.floats(0.7, 5), st.floats(0.001, 0.5), st.integers(1, 200), st.integers(1, 200))
def test_epsilon_grows_by_every_step_and_falls_with_noise(noise: float, rate: float, steps: int, more: int) -> None:
    told = accounting.epsilon([spent(noise, rate, steps)], DELTA)
    assert accounting.epsilon([spent(noise, rate, steps + more)], DELTA) >= told - 1e-9
    assert accounting.epsilon([spent(noise, rate, steps), spent(noise, rate, more)], DELTA) >= told - 1e-9
    assert accounting.epsilon([spent(noise * 1.1, rate, steps)], DELTA) <= told


@pytest.mark.parametrize("wanted", [8.0, 3.0, 1.0])
def test_the_noise_that_is_found_keeps_to_an_epsilon_and_is_the_least(wanted: float) -> None:
    noise = accounting.noise_for(wanted, DELTA, 0.06, 400)
    assert accounting.epsilon([spent(noise, 0.06, 400)], DELTA) <= wanted
    assert accounting.epsilon([spent(noise - 2e-3, 0.06, 400)], DELTA) > wanted


def test_steps_follow_from_lesions_and_no_cap_leaves_a_lesion_out() -> None:
    local, privacy = LocalTraining(balance=Balance.NONE, batch_size=32, epochs=2), Privacy(noise=1.0, clip=0.5)
    assert planned(local, privacy, 100) == Sampled(noise=1.0, clip=0.5, rate=0.32, steps=8)
    capped = planned(local.model_copy(update={"max_images": 40}), privacy, 100)
    assert (capped.rate, capped.steps) == (0.32, 4)
    assert planned(local, privacy, 7) == Sampled(noise=1.0, clip=0.5, rate=1.0, steps=2)

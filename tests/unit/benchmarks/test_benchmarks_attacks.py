"""The attacks that rules are measured under do what their papers say; some by the numbers of ByzFL 0.0.11."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from concilia_kit.lesions import CLASSES
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import attacks
from benchmarks.attacks import Crafting

Wide = npt.NDArray[np.float64]

KNOWN = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.5], [2.0, 0.0, -1.0]])
BYZFL_ALIE = [7.4686269665968865, 9.0, 11.065711845536317]
NAMES = (
    "label_flip",
    "sign_flip",
    "gaussian",
    "alie",
    "alie_paper",
    "ipm",
    "min_max",
    "min_sum",
    "mimic",
    "backdoor",
    "replacement",
    "free_rider",
    "nan",
    "scaled_counts",
)


@st.composite
def honest_updates(draw: st.DrawFn) -> Wide:
    """Differences from the base, two hospitals or more, around a common direction."""
    count, size = draw(st.integers(2, 9)), draw(st.integers(1, 20))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.01, 1.0, 100.0]))
    made: Wide = source.normal(size=size) + spread * source.normal(size=(count, size))
    return made


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_sends_one_update_an_attacker(name: str) -> None:
    made = attacks.make(name).craft(Crafting(KNOWN, KNOWN[:2] + 1, 2, generator()))
    assert made.shape == (2, 3)
    assert np.isfinite(made).all() == (name != "nan")


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(ValueError, match="'tickle' is no attack"):
        attacks.make("tickle")


def test_labels_are_flipped_end_to_end_and_back() -> None:
    labels = np.arange(len(CLASSES))
    flipped = attacks.flip_labels(labels)
    assert flipped.tolist() == [6, 5, 4, 3, 2, 1, 0]
    np.testing.assert_array_equal(attacks.flip_labels(flipped), labels)


def test_the_pattern_is_in_its_corner_and_nowhere_else() -> None:
    images = generator().integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    before = images.copy()
    stamped = attacks.stamp(images)
    np.testing.assert_array_equal(images, before)
    changed = (stamped != images).any(axis=(0, 1))
    assert changed[-8:, -8:].all()
    assert not changed[:-8].any()
    assert not changed[:, :-8].any()
    corner = stamped[0, 0, -8:, -8:]
    assert (corner == stamped[2, 1, -8:, -8:]).all()
    assert corner[0, :].tolist() == [255, 255, 0, 0, 255, 255, 0, 0]
    assert corner[2, 0] == 0


@given(st.lists(st.integers(0, len(CLASSES) - 1), min_size=1, max_size=60), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_poison_is_a_share_of_the_other_classes(labels: list[int], share: float) -> None:
    given_ = np.array(labels)
    chosen = attacks.poisoned(given_, generator(), share)
    assert not (chosen & (given_ == attacks.TARGET)).any()
    assert chosen.sum() == round(share * int((given_ != attacks.TARGET).sum()))


def test_a_replaced_model_is_where_the_attackers_want_it() -> None:
    wanted = np.array([3.0, -1.0])
    sent = attacks.replace_model(np.tile(wanted, (2, 1)), 10)
    np.testing.assert_allclose(np.concatenate([sent, np.zeros((8, 2))]).mean(axis=0), wanted)


def test_the_sign_is_flipped() -> None:
    np.testing.assert_array_equal(attacks.sign_flip(KNOWN, 4.0), -4.0 * KNOWN)
    # ByzFL's `SignFlipping` sends the opposite of the honest mean, which a mean of own ones comes to.
    np.testing.assert_allclose(attacks.sign_flip(KNOWN, 1.0).mean(axis=0), [-3.5, -3.75, -4.375])


def test_noise_is_as_strong_as_it_is_said_to_be() -> None:
    honest = 0.1 * generator().normal(size=(8, 5000))
    noise = attacks.gaussian(honest, 2, 10.0, generator())
    assert noise.shape == (2, 5000)
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(1.0, rel=0.05)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1


def test_a_little_is_byzfls() -> None:
    # `ALittleIsEnough(tau=1.5)` of gradients, which point the other way.
    found = attacks.alie(-KNOWN, 2, 1.5)
    np.testing.assert_allclose(-found[0], BYZFL_ALIE)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("everybody", "hostile", "share"),
    [(50, 24, 24 / 26), (50, 12, 24 / 38), (10, 4, 4 / 6), (10, 3, 4 / 7), (10, 2, 0.5)],
)
def test_a_little_is_as_much_as_the_paper_says(everybody: int, hostile: int, share: float) -> None:
    z = attacks.alie_distance(everybody, hostile)
    assert 0.5 * (1 + math.erf(z / math.sqrt(2))) == pytest.approx(share)


def test_the_inner_product_is_byzfls() -> None:
    # `InnerProductManipulation(tau=3)`
    np.testing.assert_allclose(attacks.ipm(KNOWN, 1, 3.0), [[-10.5, -11.25, -13.125]])


@given(honest_updates(), st.floats(0.1, 10))
def test_the_inner_product_with_the_honest_mean_is_negative(honest: Wide, strength: float) -> None:
    assert float(attacks.ipm(honest, 1, strength)[0] @ honest.mean(axis=0)) < 0


def apart(honest: Wide) -> Wide:
    found: Wide = ((honest[:, None, :] - honest[None, :, :]) ** 2).sum(axis=2)
    return found


@given(honest_updates())
def test_min_max_goes_as_far_as_it_may(honest: Wide) -> None:
    sent = attacks.min_max(honest, 2)
    np.testing.assert_array_equal(sent[0], sent[1])
    furthest = ((sent[0] - honest) ** 2).sum(axis=1).max()
    assert furthest == pytest.approx(apart(honest).max(), rel=1e-6)
    gamma = (honest.mean(axis=0) - sent[0]) / honest.std(axis=0, ddof=1)
    np.testing.assert_allclose(gamma, gamma[0], rtol=1e-6)
    assert gamma[0] > 0


@given(honest_updates())
def test_min_sum_goes_as_far_as_it_may(honest: Wide) -> None:
    sent = attacks.min_sum(honest, 1)[0]
    assert ((sent - honest) ** 2).sum() == pytest.approx(apart(honest).sum(axis=1).max(), rel=1e-6)
    gamma = (honest.mean(axis=0) - sent) / honest.std(axis=0, ddof=1)
    np.testing.assert_allclose(gamma, gamma[0], rtol=1e-6)
    assert gamma[0] > 0


def test_where_all_agree_there_is_no_room() -> None:
    same = np.tile([1.0, 2.0], (4, 1))
    for found in (attacks.min_max(same, 1), attacks.min_sum(same, 1), attacks.alie(same, 1, 1.5)):
        np.testing.assert_array_equal(found[0], same[0])


def test_the_one_that_stands_out_is_mimicked_from_then_on() -> None:
    honest = np.array([[0.0, 0.1], [0.1, 0.0], [0.0, -0.1], [5.0, 0.0]])
    memory: dict[str, int] = {}
    mimic = attacks.make("mimic")
    first = mimic.craft(Crafting(honest, np.zeros((0, 2)), 2, generator(), memory))
    np.testing.assert_array_equal(first, [honest[3], honest[3]])
    later = np.array([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    second = mimic.craft(Crafting(later, np.zeros((0, 2)), 1, generator(), memory))
    np.testing.assert_array_equal(second, [later[3]])


def test_a_free_rider_sends_the_base_and_a_fault_no_number() -> None:
    assert not attacks.free_rider(2, 3).any()
    assert np.isnan(attacks.not_a_number(2, 3)).all()


def test_scaled_counts_say_more_than_there_is() -> None:
    assert attacks.make("scaled_counts").claims == attacks.CLAIMED > 1
    assert attacks.make("sign_flip").claims == 1

"""The sum that comes out of masked updates is that of the updates, exactly; or nothing comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from concilia_kit import masking
from concilia_kit.masking import MaskingError
from concilia_kit.masking.words import Scale
from concilia_kit.wire.masking import SecureAggregation

from tests.privacy.cohort import BOUND, Cohort, a_third, same

KEYS, SHARES, INPUTS, REVEAL = "keys", "shares", "inputs", "reveal"
STAGES = (KEYS, SHARES, INPUTS, REVEAL)
COUNTS = (3, 4, 12, 65)


def run(cohort: Cohort, lost: dict[str, list[str]]) -> list[str]:
    """A whole round with these lost at these stages; who is in the sum that came out, looked at bit for bit."""
    cohort.keys(lost.get(KEYS, ()))
    cohort.shares(lost.get(SHARES, ()))
    cohort.inputs(lost.get(INPUTS, ()))
    revealed = cohort.reveals(cohort.consents(), lost.get(REVEAL, ()))
    unmasking = cohort.unmasking(revealed)
    its = masking.graph(cohort.roster)
    found, samples = cohort.means(unmasking)
    assert len(found) == len(its.groups)
    for at, (mean, behind) in enumerate(zip(found, samples, strict=True)):
        inside = [each for each in unmasking.survivors if its.group_of[its.index[each]] == at]
        assert same(mean, cohort.expected(inside))
        assert behind == sum(cohort.by_name(each).samples for each in inside)
    return list(unmasking.survivors)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_third_lost_at_one_stage(tmp_path: Path, count: int, stage: str) -> None:
    cohort = Cohort.of(count, tmp_path)
    everybody = [each.hospital for each in cohort.members]
    lost = a_third(everybody)
    if stage is not REVEAL and count - len(lost) < 3:  # of a sum of two each knows the other's
        with pytest.raises(MaskingError, match="too few"):
            run(cohort, {stage: lost})
        return
    survivors = run(cohort, {stage: lost})
    assert survivors == (everybody if stage is REVEAL else [each for each in everybody if each not in lost])


@pytest.mark.parametrize("count", [12, 65])
def test_a_third_lost_at_several_stages(tmp_path: Path, count: int) -> None:
    cohort = Cohort.of(count, tmp_path)
    lost = a_third([each.hospital for each in cohort.members], begin=1)
    assert len(lost) >= 4
    parts = {SHARES: lost[0::3], INPUTS: lost[1::3], REVEAL: lost[2::3]}
    survivors = run(cohort, parts)
    assert set(survivors).isdisjoint([*parts[SHARES], *parts[INPUTS]])


def test_a_third_lost_at_keys_and_a_third_of_the_rest_later(tmp_path: Path) -> None:
    cohort = Cohort.of(12, tmp_path)
    everybody = [each.hospital for each in cohort.members]
    first = a_third(everybody)
    left = [each for each in everybody if each not in first]
    assert len(run(cohort, {KEYS: first, SHARES: left[:1], INPUTS: left[3:4]})) == 6


@pytest.mark.slow
def test_a_graph_that_is_not_complete(tmp_path: Path) -> None:
    """150: each shares with 130. A quarter is lost, at two stages."""
    cohort = Cohort.of(150, tmp_path, start={"w": np.linspace(-1, 1, 40, dtype=np.float32)})
    everybody = [each.hospital for each in cohort.members]
    lost = everybody[1::4]
    survivors = run(cohort, {SHARES: lost[::2], INPUTS: lost[1::2]})
    assert {len(each) for each in masking.graph(cohort.roster).neighbours} == {130}
    assert len(survivors) == 150 - len(lost)


@pytest.mark.parametrize(("count", "group", "sizes"), [(12, 4, [4, 4, 4]), (14, 4, [4, 5, 5]), (7, 5, [7])])
def test_groups(tmp_path: Path, count: int, group: int, sizes: list[int]) -> None:
    cohort = Cohort.of(count, tmp_path, SecureAggregation(group=group))
    its = masking.graph(cohort.keys())
    assert sorted(len(each) for each in its.groups) == sizes
    lost = [cohort.members[each[0]].hospital for each in its.groups]  # one of each, which all of them can bear
    assert len(run(cohort, {INPUTS: lost})) == count - len(sizes)


def test_a_group_of_three_can_lose_nobody(tmp_path: Path) -> None:
    """Two would be enough to unmask, and each of them would know the other's update."""
    cohort = Cohort.of(12, tmp_path, SecureAggregation(group=3))
    assert len(run(cohort, {})) == 12
    one = cohort.members[masking.graph(cohort.roster).groups[0][0]].hospital
    with pytest.raises(MaskingError, match="too few"):
        run(Cohort.of(12, tmp_path, SecureAggregation(group=3)), {INPUTS: [one]})


def test_a_group_below_its_threshold_stops_all(tmp_path: Path) -> None:
    cohort = Cohort.of(12, tmp_path, SecureAggregation(group=3))
    its = masking.graph(cohort.keys())
    lost = [cohort.members[each].hospital for each in its.groups[2][:2]]
    with pytest.raises(MaskingError, match="too few"):
        run(cohort, {INPUTS: lost})
    assert not list(tmp_path.glob("mean*"))


@pytest.mark.parametrize("count", [4, 12])
@pytest.mark.parametrize("stage", [SHARES, INPUTS, REVEAL])
def test_below_the_threshold_nothing_comes_out(tmp_path: Path, count: int, stage: str) -> None:
    cohort = Cohort.of(count, tmp_path)
    everybody = [each.hospital for each in cohort.members]
    lost = everybody[: len(a_third(everybody)) + 1]
    with pytest.raises(MaskingError, match="too few"):
        run(cohort, {stage: lost})
    assert not list(tmp_path.glob("mean*"))
    if stage is SHARES:
        assert not cohort.given


def test_the_mean_is_that_of_the_updates(tmp_path: Path) -> None:
    """To the resolution: a step of a word for each of them."""
    cohort = Cohort.of(4, tmp_path)
    cohort.keys()
    cohort.shares()
    cohort.inputs()
    found, _ = cohort.means(cohort.unmasking(cohort.reveals(cohort.consents())))
    weights = np.array([each.samples for each in cohort.members], np.float64)
    for name in ("a.weight", "d.bias", "e.double"):
        plain = np.average([each.trained[name].astype(np.float64) for each in cohort.members], axis=0, weights=weights)
        step = BOUND * max(1.0, float(np.abs(cohort.base.tensor(name)).max())) / 2**31
        rounding = np.spacing(np.abs(plain).astype(found[0].tensor(name).dtype))
        assert np.all(np.abs(found[0].tensor(name) - plain) <= 4 * step + rounding)


def test_what_is_beyond_the_bound_is_cut_off_and_counted(tmp_path: Path) -> None:
    start = {"w": np.zeros(10, np.float32)}
    cohort = Cohort.of(3, tmp_path, start=start)
    cohort.members[0].trained = {"w": np.array([9, -9, 3, 0, 0, 0, 0, 0, 0, 5], np.float32)}
    cohort.members[1].trained = cohort.members[2].trained = start
    cohort.keys()
    cohort.shares()
    its = cohort.members[0]
    marks = masking.masks(its.secrets, cohort.roster, its.hospital, cohort.sharers)
    written = masking.write(
        tmp_path / "one", its.trained, cohort.base, marks, cohort.roster, samples=its.samples, bound=BOUND
    )
    assert written.clipped == 3
    cohort.inputs()
    found, _ = cohort.means(cohort.unmasking(cohort.reveals(cohort.consents())))
    share = its.samples / sum(each.samples for each in cohort.members)
    assert np.allclose(found[0].tensor("w"), share * np.array([4, -4, 3, 0, 0, 0, 0, 0, 0, 4]), atol=1e-7)


def test_a_longer_change_than_the_norm_is_shortened(tmp_path: Path) -> None:
    cohort = Cohort.of(3, tmp_path, start={"w": np.zeros(100, np.float32)})
    for each in cohort.members:
        each.trained = {"w": np.full(100, 0.5, np.float32)}  # of length 5
    cohort.keys()
    cohort.shares()
    cohort.inputs(norm=2.0)
    found, _ = cohort.means(cohort.unmasking(cohort.reveals(cohort.consents())))
    assert np.linalg.norm(found[0].tensor("w")) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    cohort = Cohort.of(3, tmp_path)
    cohort.members[1].trained["d.bias"][77] = value
    cohort.keys()
    cohort.shares()
    with pytest.raises(MaskingError, match="finite"):
        cohort.inputs()
    assert cohort.members[1].hospital not in {each.name for each in tmp_path.iterdir()}


def test_sums_at_the_very_edge_do_not_wrap(tmp_path: Path) -> None:
    """All at the bound, of odd weights: the sum is below 2**31, as the range of words is made for."""
    start = {"w": np.zeros(2, np.float32)}
    cohort = Cohort.of(12, tmp_path, start=start)
    for each in cohort.members:
        each.trained = {"w": np.array([1e30, -1e30], np.float32)}
    roster = cohort.keys()
    total = sum((cohort.quantised(each, "w") for each in roster.hospitals), np.zeros(2, np.int64))
    assert 2**31 - 100 < total[0] < 2**31
    assert -(2**31) < total[1] < -(2**31) + 100
    cohort.shares()
    cohort.inputs()
    found, _ = cohort.means(cohort.unmasking(cohort.reveals(cohort.consents())))
    assert np.array_equal(found[0].tensor("w"), np.array([BOUND, -BOUND], np.float32))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_windows_do_not_change_a_bit(tmp_path: Path, threads: int) -> None:
    """Of more elements than a window has, with tensors of other dtypes between."""
    rng = np.random.default_rng(5)
    start = {
        "a": rng.normal(size=150_001).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float16),
        "c": rng.normal(size=70_003).astype(np.float32),
        "d": np.arange(5),
        "e": rng.normal(size=66_000).astype(np.float32),
    }
    cohort = Cohort.of(4, tmp_path, start=start)
    cohort.keys()
    cohort.shares()
    cohort.inputs(gone=[cohort.members[2].hospital])
    found, _ = cohort.means(cohort.unmasking(cohort.reveals(cohort.consents())), threads)
    assert same(found[0], cohort.expected([each for each in cohort.sharers if each in cohort.given]))


def test_other_updates_are_refused(tmp_path: Path) -> None:
    cohort = Cohort.of(4, tmp_path)
    cohort.keys()
    cohort.shares()
    cohort.inputs()
    unmasking = cohort.unmasking(cohort.reveals(cohort.consents()))
    fine = dict(cohort.given)
    changes: list[Callable[[], None]] = [
        lambda: cohort.given.update({cohort.sharers[0]: cohort.base}),
        lambda: setattr(cohort.by_name(cohort.sharers[0]), "samples", 10**6),
        lambda: setattr(cohort.by_name(cohort.sharers[0]), "samples", 0),
    ]
    for change in changes:
        before = cohort.by_name(cohort.sharers[0]).samples
        change()
        with pytest.raises(MaskingError):
            cohort.means(unmasking)
        cohort.given, cohort.by_name(cohort.sharers[0]).samples = dict(fine), before
    cohort.means(unmasking)


def test_words_are_as_they_are_written_down(tmp_path: Path) -> None:
    cohort = Cohort.of(3, tmp_path, start={"w": np.array([0.5, -8.0], np.float32)})
    roster = cohort.keys()
    words = np.empty(2, np.int32)
    clipped = Scale.of(roster, 4.0, cohort.base).quantise(
        "w", np.array([1.0, -40.0]), roster.members[0].keys.samples, words
    )
    share = roster.members[0].keys.samples / roster.samples
    unit = 2**31 - 1 - 3
    assert clipped == 1
    assert words.tolist() == [round(1 / 32 * share * unit), -round(share * unit)]


def test_equal_secrets_give_equal_bytes(tmp_path: Path) -> None:
    """A node that was killed repeats what it did."""
    cohort = Cohort.of(4, tmp_path)
    cohort.keys()
    cohort.shares()
    cohort.inputs()
    before = {hospital: file.path.read_bytes() for hospital, file in cohort.given.items()}
    its = cohort.members[0]
    again = masking.share(its.secrets, cohort.roster, its.hospital)
    assert again == masking.share(its.secrets, cohort.roster, its.hospital)
    cohort.inputs()
    assert before == {hospital: file.path.read_bytes() for hospital, file in cohort.given.items()}

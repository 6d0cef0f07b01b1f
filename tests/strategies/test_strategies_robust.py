"""Each robust rule beside ByzFL's and Flower's own, over rounds that hypothesis draws.

ByzFL's Krum and Multi-Krum score an update by its n - f - 1 nearest others; the paper, Flower and we by n - f - 2.
"""

from __future__ import annotations

import itertools

import byzfl
import numpy as np
import pytest
from concilia_aggregator.strategies.bulyan import Bulyan, chosen
from concilia_aggregator.strategies.centred_clipping import CentredClipping
from concilia_aggregator.strategies.combining import Combined, Rule, combination
from concilia_aggregator.strategies.dp_fedavg import DPFedAvg
from concilia_aggregator.strategies.fltrust import FLTrust
from concilia_aggregator.strategies.geometric_median import GeometricMedian
from concilia_aggregator.strategies.hostile import Hostile
from concilia_aggregator.strategies.krum import MultiKrum, scores
from concilia_aggregator.strategies.median import Median
from concilia_aggregator.strategies.mixing import Bucketing, Mixed, NearestNeighbours
from concilia_aggregator.strategies.norm_clipping import NormClipping
from concilia_aggregator.strategies.trimmed_mean import TrimmedMean
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from .conftest import CASES, Round, Wide, close, rounds

SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4])
thoroughly = settings(max_examples=CASES, deadline=None, derandomize=True)


def by_rule(among: Round, rule: Rule) -> Wide:
    return among.folded(combination(rule.coefficients(among.geometry())))


def hostile(among: Round, share: float, each: int, more: int) -> int:
    """How many are taken for hostile, by other arithmetic than ours."""
    return max(min(round(share * len(among.samples) - 0.4999999), (len(among.samples) - more) // each), 0)


def distinct(values: list[float], gap: float = 1e-6) -> bool:
    """Whether no two scores are so near that rounding might order them either way."""
    ordered = sorted(values)
    return all(later - earlier > gap * max(1.0, later) for earlier, later in itertools.pairwise(ordered))


def records(among: Round) -> list[RecordDict]:
    return [RecordDict({"a": ArrayRecord({"x": Array(row)})}) for row in among.updates]


def of_flower(found: list[RecordDict]) -> Wide:
    return np.stack([each["a"].to_numpy_ndarrays()[0] for each in found])


@thoroughly
@given(rounds())
def test_median(among: Round) -> None:
    theirs = byzfl.Median()(among.updates)
    close(Median().fold(list(among.updates), among.samples), theirs, among)


@thoroughly
@given(rounds(), SHARES)
def test_trimmed_mean(among: Round, share: float) -> None:
    trimmed = int(share * len(among.samples))
    assume(2 * trimmed < len(among.samples))
    theirs = byzfl.TrMean(f=trimmed)(among.updates)
    close(TrimmedMean(share).fold(list(among.updates), among.samples), theirs, among)


@thoroughly
@given(rounds(), SHARES)
def test_krum(among: Round, share: float) -> None:
    count, count_hostile = len(among.samples), hostile(among, share, 2, 3)
    distances = among.geometry().squared_distances()
    assume(distinct(list(scores(distances, range(count), count - count_hostile - 2).values())))
    assume(distinct(list(scores(distances, range(count), count - count_hostile - 1).values())))
    ours = by_rule(among, MultiKrum(Hostile(share), one=True))
    close(ours, of_flower(select_multikrum(records(among), count_hostile, 1))[0], among)
    as_byzfl = by_rule(among, MultiKrum(Hostile(share), one=True, neighbours_less=1))
    close(as_byzfl, byzfl.Krum(f=count_hostile)(among.updates), among)


@thoroughly
@given(rounds(), SHARES)
def test_multi_krum(among: Round, share: float) -> None:
    count, count_hostile = len(among.samples), hostile(among, share, 2, 3)
    distances = among.geometry().squared_distances()
    assume(distinct(list(scores(distances, range(count), count - count_hostile - 2).values())))
    assume(distinct(list(scores(distances, range(count), count - count_hostile - 1).values())))
    ours = by_rule(among, MultiKrum(Hostile(share)))
    theirs = of_flower(select_multikrum(records(among), count_hostile, count - count_hostile)).mean(axis=0)
    close(ours, theirs, among)
    as_byzfl = by_rule(among, MultiKrum(Hostile(share), neighbours_less=1))
    close(as_byzfl, byzfl.MultiKrum(f=count_hostile)(among.updates), among)


@thoroughly
@given(rounds(), st.integers(1, 8), st.sampled_from([0.1, 1e-3]))
def test_geometric_median(among: Round, steps: int, smoothing: float) -> None:
    """ByzFL starts at 0: that is the base here."""
    ours = by_rule(among, GeometricMedian(by_samples=False, steps=steps, smoothing=smoothing))
    theirs = among.base + byzfl.GeometricMedian(nu=smoothing, T=steps)(among.differences)
    close(ours, theirs, among)


@thoroughly
@given(rounds(), st.integers(1, 4), st.sampled_from([0.1, 1.0, 10.0]))
def test_centred_clipping(among: Round, steps: int, radius: float) -> None:
    ours = by_rule(among, CentredClipping(radius, steps))
    theirs = among.base + byzfl.CenteredClipping(L=steps, tau=radius)(among.differences)
    close(ours, theirs, among)


@thoroughly
@given(rounds(), st.sampled_from([0.1, 1.0, 10.0]))
def test_norm_clipping(among: Round, radius: float) -> None:
    clipped = byzfl.Clipping(c=radius)(among.differences.copy())
    theirs = among.base + np.average(clipped, axis=0, weights=among.samples)
    close(by_rule(among, NormClipping(radius)), theirs, among)


@thoroughly
@given(rounds(), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 1000))
def test_dp_fedavg(among: Round, radius: float, seed: int) -> None:
    """All alike, whatever their samples; with noise that both are given, to the places that are told."""
    count, numbers = len(among.samples), np.random.default_rng(seed).normal(size=among.base.size)
    clipped = byzfl.Clipping(c=radius)(among.differences.copy())
    theirs = among.base + (clipped.sum(axis=0) + 0.1 * radius * numbers) / count
    ours = DPFedAvg(radius, 0.1).noised(among.geometry()).fold(list(among.updates), among.base, numbers)
    told = 0.1 * radius * 2**-12 / count
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=told)
    order = list(np.random.default_rng(seed).permutation(count))
    again = among.permuted(order)
    assert (ours == DPFedAvg(radius, 0.1).noised(again.geometry()).fold(list(again.updates), among.base, numbers)).all()


@thoroughly
@given(rounds(least=7, most=16), SHARES)
def test_bulyan(among: Round, share: float) -> None:
    """Flower selects all at once by one score; the paper, and we, one after another. So its second half is compared."""
    count_hostile = hostile(among, share, 4, 3)
    some = among.updates[chosen(among.geometry(), count_hostile)]
    assert len(some) == len(among.samples) - 2 * count_hostile
    kept = len(some) - 2 * count_hostile
    middle = np.median(some, axis=0)
    far = np.sort(np.abs(some - middle), axis=0)
    assume(kept == len(some) or bool(np.all(far[kept] - far[kept - 1] > 1e-9)))
    ours = among.folded(Bulyan(Hostile(share)).prepare(among.geometry()))
    close(ours, aggregate_n_closest_weights([middle], [[row] for row in some], kept)[0], among)


@thoroughly
@given(rounds(least=7, most=16), SHARES)
def test_bulyan_chooses_as_krum_does_again_and_again(among: Round, share: float) -> None:
    """As long as one has the lowest score: two that are each other's nearest share it where few are left."""
    count_hostile = hostile(among, share, 4, 3)
    left, compared = list(range(len(among.samples))), 0
    for ours in chosen(among.geometry(), count_hostile):
        some = Round(among.base, among.updates[left], tuple(among.samples[each] for each in left))
        distances = some.geometry().squared_distances()
        if not distinct(sorted(scores(distances, range(len(left)), len(left) - count_hostile - 2).values())[:2]):
            break
        best = of_flower(select_multikrum(records(some), count_hostile, 1))[0]
        assert (among.updates[ours] == best).all()
        left.remove(ours)
        compared += 1
    assume(compared)


@thoroughly
@given(rounds(), SHARES)
def test_nearest_neighbour_mixing(among: Round, share: float) -> None:
    count_hostile = hostile(among, share, 2, 1)
    distances = among.geometry().squared_distances()
    assume(all(distinct(list(row), 1e-9) for row in distances))
    theirs = byzfl.NNM(f=count_hostile)(among.updates)
    groups = NearestNeighbours(Hostile(share)).groups(among.geometry())
    close(np.stack([among.updates[some].mean(axis=0) for some in groups]), theirs, among)
    mixed = Mixed(NearestNeighbours(Hostile(share)), Median()).prepare(among.geometry())
    close(among.folded(mixed), byzfl.Median()(theirs), among)
    rule = GeometricMedian(by_samples=False, steps=3, smoothing=0.1)
    both = Mixed(NearestNeighbours(Hostile(share)), Combined(rule)).prepare(among.geometry())
    close(among.folded(both), among.base + byzfl.GeometricMedian()(theirs - among.base), among)


@thoroughly
@given(rounds(), st.integers(1, 4), st.integers(0, 1000))
def test_bucketing(among: Round, size: int, seed: int) -> None:
    """ByzFL draws by NumPy; given our order it makes our buckets."""
    groups = Bucketing(size, seed).groups(among.geometry())
    assert sorted(index for some in groups for index in some) == list(range(len(among.samples)))
    drawn = [index for some in groups for index in some]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "permutation", lambda vectors: vectors[drawn])
        theirs = byzfl.Bucketing(s=size)(among.updates)
    mixed = Mixed(Bucketing(size, seed), Median()).prepare(among.geometry())
    close(among.folded(mixed), byzfl.Median()(theirs), among)


@thoroughly
@given(rounds(), st.data())
def test_fltrust(among: Round, data: st.DataObject) -> None:
    """By its paper's equations, written anew: neither of the others has it."""
    root = data.draw(st.integers(0, len(among.samples) - 1))
    trusted = among.differences[root]
    weights, scaled = [], []
    for index, row in enumerate(among.differences):
        if index != root:
            cosine = row @ trusted / (np.linalg.norm(row) * np.linalg.norm(trusted))
            weights.append(max(cosine, 0.0))
            scaled.append(row / np.linalg.norm(row) * np.linalg.norm(trusted))
    expected = among.base.copy()
    if sum(weights) > 0:
        expected += np.average(scaled, axis=0, weights=weights)
    ours = among.folded(combination(FLTrust().coefficients(among.geometry(root))))
    close(ours, expected, among)


RULES: dict[str, Rule] = {
    "krum": MultiKrum(Hostile(0.2), one=True),
    "multi-krum": MultiKrum(Hostile(0.2)),
    "geometric median": GeometricMedian(),
    "centred clipping": CentredClipping(),
    "norm clipping": NormClipping(),
}


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(among=rounds(), data=st.data())
def test_order_changes_no_bit(name: str, among: Round, data: st.DataObject) -> None:
    order_ = data.draw(st.permutations(range(len(among.samples))))
    assert (by_rule(among, RULES[name]) == by_rule(among.permuted(order_), RULES[name])).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(among=rounds(least=7), data=st.data())
def test_order_changes_no_bit_of_what_goes_by_element(among: Round, data: st.DataObject) -> None:
    order_ = data.draw(st.permutations(range(len(among.samples))))
    again = among.permuted(order_)
    for strategy in (Bulyan(Hostile(0.2)), Mixed(NearestNeighbours(Hostile(0.2)), Median())):
        ours, theirs = (each.folded(strategy.prepare(each.geometry())) for each in (among, again))
        assert (ours == theirs).all()

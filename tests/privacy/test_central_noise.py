"""Noise at the aggregator is of the size and distribution that is accounted for, is the key's and no other's, and one
update, whatever it is, moves the mean by so much at most."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from concilia_aggregator import noising
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.strategies.dp_fedavg import BITS, SLACK, DPFedAvg
from concilia_aggregator.strategies.geometry import Fact, Geometry, gram_of
from concilia_client_node import accounting, sampling
from concilia_kit import encodings, gaussians, tensorfile
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.privacy import CentralNoise
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Architecture
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.privacy.test_dp_accounting import DELTA, analytic

Arrays = dict[str, npt.NDArray[Any]]
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
RADIUS, NOISE = 2.0, 0.5
SPEC = Strategy(name=StrategyName.DP_FEDAVG, radius=RADIUS, noise=NOISE)


# ------------------------------------------------------------------------------------------------- random numbers


def test_numbers_are_normal_and_independent() -> None:
    found = gaussians.keyed(KEY, 0, 1_000_000)
    assert stats.kstest(found, "norm").pvalue > 1e-6
    assert found.mean() == pytest.approx(0, abs=5e-3)
    assert found.std() == pytest.approx(1, abs=5e-3)
    assert abs(stats.kurtosis(found)) < 0.03
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 5e-3
    assert abs(np.corrcoef(found, gaussians.keyed(OTHER, 0, found.size))[0, 1]) < 5e-3


def test_tails_are_as_heavy_as_they_are_to_be() -> None:
    found = np.abs(gaussians.keyed(KEY, 0, 4_000_000))
    for beyond in (2.0, 3.0, 4.0, 4.5):
        low, high = stats.binom.interval(1 - 1e-7, found.size, 2 * stats.norm.sf(beyond))
        assert low <= (found > beyond).sum() <= high


def test_logarithms_and_turns_are_the_librarys_to_the_last_places() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, 200_000, np.uint64)
    words[:3] = 0, 2**64 - 1, 2**11
    chance, turn = gaussians.uniforms(words), gaussians.uniforms(words[::-1])
    radius = np.sqrt(-2 * np.log1p(-chance))
    expected = radius * (np.cos(2 * np.pi * turn) + np.sin(2 * np.pi * turn))
    np.testing.assert_allclose(gaussians._of_two(chance, turn), expected, rtol=1e-14, atol=1e-14)
    assert np.isfinite(expected).all()
    assert (chance[1], chance[0]) == (1 - 2.0**-53, 0.0)


def test_numbers_are_made_of_nothing_that_machines_round_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """No function of a C library: whoever has other ones gets the same bytes."""
    expected = gaussians.keyed(KEY, 5, 1000)
    for name in ("log", "log1p", "log2", "exp", "sin", "cos", "tan", "arctan2", "power", "dot", "matmul", "einsum"):
        monkeypatch.setattr(np, name, lambda *_: pytest.fail("a library's function"))
    assert gaussians.keyed(KEY, 5, 1000).tobytes() == expected.tobytes()


def test_the_numbers_of_a_key_are_written_down() -> None:
    """These may never change: models of before could not be made again."""
    found = gaussians.keyed(KEY, 0, 3)
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(96))
    words = np.frombuffer(stream, "<u8")
    by_hand = []
    for row in words.reshape(3, 4):
        u = [(int(each) >> 11) * 2.0**-53 for each in row]
        pairs = [
            math.sqrt(-2 * math.log1p(-u[at])) * (math.cos(2 * math.pi * u[at + 1]) + math.sin(2 * math.pi * u[at + 1]))
            for at in (0, 2)
        ]
        by_hand.append(sum(pairs) / 2)
    np.testing.assert_allclose(found, by_hand, rtol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 70_000), st.integers(0, 50_000))
def test_any_stretch_is_a_stretch_of_all(start: int, count: int, at: int) -> None:
    at = min(at, count)
    whole = gaussians.keyed(KEY, start, count)
    assert whole[at:].tobytes() == gaussians.keyed(KEY, start + at, count - at).tobytes()


# ---------------------------------------------------------------------------------------------------------- folding


def put(folder: Path, name: str, arrays: Arrays) -> TensorFile:
    tensorfile.write(folder / name, arrays)
    return TensorFile.open(folder / name)


def round_of(folder: Path, count: int = 3, **shapes: tuple[int, ...]) -> tuple[TensorFile, list[TensorFile]]:
    """A base and updates of it, one of them far away; with a counter."""
    rng = np.random.default_rng(1)
    base: Arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    base["n"] = np.array(7, np.int64)
    updates = []
    for at in range(count):
        scale = 1e-4 if at else 10.0
        made: Arrays = {
            name: (base[name] + scale * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()
        }
        updates.append(put(folder, f"update-{at}", made | {"n": np.array(100 + at, np.int64)}))
    return put(folder, "base", base), updates


def recipe(spec: Strategy = SPEC) -> Recipe:
    return Recipe(Architecture.RESNET18, 1, spec, noise="a" * 64)


def folded(folder: Path, base: TensorFile, updates: list[TensorFile], key: bytes | None = KEY, **how: Any) -> bytes:
    fold(updates, [1] * len(updates), recipe(how.pop("spec", SPEC)), folder / "out", base, noise=key, **how)
    return (folder / "out").read_bytes()


def mean(base: TensorFile, updates: list[TensorFile], name: str, radius: float = RADIUS) -> npt.NDArray[np.float64]:
    """The base with the mean of the clipped differences, without noise, by arithmetic of its own."""
    floating = [each for each, spec in base.header.tensors.items() if spec.dtype.kind == "f"]
    total = np.zeros(base.tensor(name).shape)
    for update in updates:
        parts = [(update.tensor(each).astype(np.float64) - base.tensor(each)).ravel() for each in floating]
        norm = math.sqrt(math.fsum((np.concatenate(parts) ** 2).tolist()))
        total += (update.tensor(name).astype(np.float64) - base.tensor(name)) * min(1.0, radius / norm)
    return base.tensor(name) + total / len(updates)


def test_noise_is_of_the_size_and_distribution_that_is_accounted_for(tmp_path: Path) -> None:
    base, updates = round_of(tmp_path, a=(1000, 1000), b=(77,))
    folded(tmp_path, base, updates)
    model = TensorFile.open(tmp_path / "out")
    noise = (model.tensor("a") - mean(base, updates, "a")).ravel() / (NOISE * RADIUS / len(updates))
    assert noise.size == 1_000_000
    assert noise.std() == pytest.approx(1, abs=4e-3)
    assert noise.mean() == pytest.approx(0, abs=4e-3)
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    assert model.tensor("n") == 7, "a maximum would tell whose it is"


def test_one_key_gives_one_model_whatever_computes_it_and_another_key_another(tmp_path: Path) -> None:
    base, updates = round_of(tmp_path, a=(700, 400), b=(5,), c=(3, 3))
    first = folded(tmp_path, base, updates, threads=1)
    assert first == folded(tmp_path, base, updates, threads=4) == folded(tmp_path, base, updates)
    assert first == folded(tmp_path, base, updates[::-1])
    assert first != folded(tmp_path, base, updates, OTHER)


def test_no_element_has_the_noise_of_another(tmp_path: Path) -> None:
    base, updates = round_of(tmp_path, a=(300, 300), b=(300, 300))
    folded(tmp_path, base, updates)
    model = TensorFile.open(tmp_path / "out")
    one, other = ((model.tensor(name) - mean(base, updates, name)).ravel() for name in "ab")
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert len({*one.tolist()} & {*other.tolist()}) < 10


def test_who_has_the_key_takes_the_noise_off(tmp_path: Path) -> None:
    """That is why no hospital may have it, and why it can be verified."""
    base, updates = round_of(tmp_path, a=(40, 50))
    folded(tmp_path, base, updates)
    numbers = gaussians.keyed(KEY, 0, 2000).reshape(40, 50)
    found = TensorFile.open(tmp_path / "out").tensor("a") - numbers * NOISE * RADIUS / len(updates)
    np.testing.assert_allclose(found, mean(base, updates, "a"), atol=1e-3 * NOISE * RADIUS)


def test_samples_do_not_count(tmp_path: Path) -> None:
    base, updates = round_of(tmp_path, a=(10, 10))
    alike = folded(tmp_path, base, updates)
    fold(updates, [1, 1000, 5], recipe(), tmp_path / "out", base, noise=KEY)
    assert (tmp_path / "out").read_bytes() == alike


@pytest.mark.parametrize("encoding", ["float16", "int8"])
def test_encoded_updates_are_decoded_and_then_cut(tmp_path: Path, encoding: str) -> None:
    base, updates = round_of(tmp_path, a=(30, 40))
    sent = []
    for at, each in enumerate(updates):
        path = tmp_path / f"encoded-{at}"
        encodings.encode(path, Encoding.parse(encoding), {name: each.tensor(name) for name in each}, base)
        sent.append(TensorFile.open(path))
    folded(tmp_path, base, sent)
    noiseless = mean(base, updates, "a")
    moved = TensorFile.open(tmp_path / "out").tensor("a") - noiseless
    numbers = gaussians.keyed(KEY, 0, 1200).reshape(30, 40) * NOISE * RADIUS / len(updates)
    np.testing.assert_allclose(moved, numbers, atol=0.02 * RADIUS)


def test_without_key_or_base_nothing_is_made(tmp_path: Path) -> None:
    base, updates = round_of(tmp_path, a=(10, 10))
    with pytest.raises(ValueError, match="dp_fedavg needs the key of its noise"):
        folded(tmp_path, base, updates, None)
    with pytest.raises(ValueError, match="goes by what updates change of their base"):
        fold(updates, [1] * 3, recipe(), tmp_path / "out", noise=KEY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes(tmp_path: Path, value: float) -> None:
    base, updates = round_of(tmp_path, a=(10, 10))
    bad = {name: np.array(updates[1].tensor(name)) for name in updates[1]}
    bad["a"][3, 3] = value
    with pytest.raises(ValueError, match="infinite or no number"):
        folded(tmp_path, base, [updates[0], put(tmp_path, "bad", bad)])


def test_variances_stay_above_half_of_what_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    base: Arrays = {
        "bn.running_var": rng.uniform(1e-3, 2, 4000).astype(np.float32),
        "bn.weight": np.ones(4000, np.float32),
    }
    start = put(tmp_path, "base", base)
    updates = [put(tmp_path, f"u{at}", {name: each + np.float32(0.01) for name, each in base.items()}) for at in "ab"]
    folded(tmp_path, start, updates, spec=SPEC.model_copy(update={"noise": 5.0}))
    model = TensorFile.open(tmp_path / "out")
    after, before = model.tensor("bn.running_var"), base["bn.running_var"]
    assert (after >= before * np.float32(0.5)).all()
    assert 100 < (after == before * np.float32(0.5)).sum() < 3900, "noise was on them"
    assert (model.tensor("bn.weight") < 0).any(), "others are left as they come"


def test_what_a_narrow_dtype_cannot_hold_is_the_largest_that_it_can(tmp_path: Path) -> None:
    base = put(tmp_path, "base", {"h": np.full(200, 65000, np.float16)})
    updates = [put(tmp_path, "u", {"h": np.full(200, 65000, np.float16)})]
    folded(tmp_path, base, updates, spec=SPEC.model_copy(update={"radius": 1e5, "noise": 100.0}))
    found = TensorFile.open(tmp_path / "out").tensor("h")
    assert np.isfinite(found).all()
    assert {65504.0, -65504.0} <= {*found.astype(float).tolist()}


def test_what_is_told_are_whole_numbers_of_a_step_that_hangs_on_no_update(tmp_path: Path) -> None:
    """Which places of a float64 are set tells nothing of what the noise was added to (Mironov 2012)."""
    base = put(tmp_path, "base", {"a": np.zeros(5000)})
    updates = [put(tmp_path, f"u{at}", {"a": np.random.default_rng(at).normal(size=5000)}) for at in range(4)]
    folded(tmp_path, base, updates)
    step = 2.0 ** (math.floor(math.log2(NOISE)) - 12) * RADIUS / len(updates)
    told = TensorFile.open(tmp_path / "out").tensor("a") / step
    assert (told == np.rint(told)).all()
    assert len({*told.tolist()}) > 3000


# ------------------------------------------------------------------------------------------------------ sensitivity


def sums(base: npt.NDArray[Any], rows: npt.NDArray[Any], radius: float) -> npt.NDArray[np.float64]:
    """`n` times the mean without noise, as the strategy makes it, and before what it tells is rounded."""
    differences = rows.astype(np.float64) - base
    geometry = Geometry([Fact(1)] * len(rows), lambda: gram_of(differences))
    made: Any = DPFedAvg(radius, 1.0).noised(geometry)
    total = np.zeros(base.size)
    for row, share in zip(differences, made._shorter, strict=True):
        total += np.rint(row * (share / made._unit)) * made._unit
    return total


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], float]:
    """A base, a round's updates, the same with one of them another, and a radius."""
    count, size = draw(st.integers(1, 6)), draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = rng.normal(size=size).astype(np.float32)
    scales = st.sampled_from([0.0, 1e-20, 1e-6, 1e-2, 1.0, 1e3, 1e15])
    one, other = (
        (base + draw(scales) * rng.normal(size=(count, size)) * draw(scales)).astype(np.float32) for _ in range(2)
    )
    which = draw(st.integers(0, count - 1))
    replaced = one.copy()
    replaced[which] = other[which] if draw(st.booleans()) else base - (one[which] - base)
    return base, one, replaced, draw(st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 50.0, 1e6]))


@settings(max_examples=500, deadline=None)
@given(neighbours())
def test_one_update_moves_the_mean_by_two_radii_at_most(case: Any) -> None:
    base, one, other, radius = case
    moved = sums(base, other, radius) - sums(base, one, radius)
    assert math.sqrt(math.fsum((moved**2).tolist())) <= 2 * radius


@settings(max_examples=200, deadline=None)
@given(neighbours())
def test_an_update_counts_for_its_radius_at_most_and_for_nothing_less_than_it_must(case: Any) -> None:
    base, rows, _, radius = case
    for row in rows:
        norm = math.sqrt(math.fsum(((row.astype(np.float64) - base) ** 2).tolist()))
        length = math.sqrt(math.fsum((sums(base, row[None], radius) ** 2).tolist()))
        assert length <= radius
        assert length >= min(norm, radius) * (1 - 4 * SLACK) - 2.0 ** (-BITS) * radius * math.sqrt(base.size)


def test_two_rounds_that_are_farthest_apart_are_two_radii_apart(tmp_path: Path) -> None:
    """The bound is met, so that half the noise is what counts: by models that were folded, with one key."""
    base = put(tmp_path, "base", {"a": np.zeros(900)})
    there = put(tmp_path, "there", {"a": np.full(900, 5.0)})
    back = put(tmp_path, "back", {"a": np.full(900, -5.0)})
    still = put(tmp_path, "still", {"a": np.zeros(900)})
    models = []
    for one in (there, back):
        folded(tmp_path, base, [one, still])
        models.append(np.array(TensorFile.open(tmp_path / "out").tensor("a")))
    assert np.linalg.norm(models[0] - models[1]) == pytest.approx(2 * RADIUS / 2, rel=1e-3)


# ------------------------------------------------------------------------------------------------------- accounting


@pytest.mark.parametrize("noise", [0.5, 2.0, 8.0, 40.0])
def test_epsilon_is_the_gaussian_mechanisms_of_one_update_replaced(noise: float) -> None:
    done = sampling.central(CentralNoise(radius=3.0, noise=noise))
    assert (done.noise * done.clip, done.clip, done.rate, done.steps) == (noise * 3.0, 6.0, 1.0, 1)
    told = accounting.epsilon([done], DELTA)
    assert analytic(noise / 2) <= told <= analytic(noise / 2) + 1e-3


@pytest.mark.parametrize(("noise", "rounds"), [(4.0, 1), (4.0, 10), (20.0, 100), (60.0, 1000)])
def test_rounds_are_composed(noise: float, rounds: int) -> None:
    """Rounds of Gaussian mechanisms are one, with the noise of one divided by the root of their number."""
    done = [sampling.central(CentralNoise(radius=1.0, noise=noise))] * rounds
    told, exact = accounting.epsilon(done, DELTA), analytic(noise / 2 / math.sqrt(rounds))
    assert exact <= told <= exact + 5e-3
    one = pld.from_gaussian_mechanism(noise / 2, value_discretization_interval=1e-4)
    assert told == pytest.approx(float(one.self_compose(rounds).get_epsilon_for_delta(DELTA)), abs=5e-3)


# ------------------------------------------------------------------------------------------------------------- keys


def test_a_key_is_the_systems_and_in_a_file_of_its_own(tmp_path: Path) -> None:
    digests = {noising.write_key(tmp_path / str(at)) for at in range(4)}
    keys = {noising.read_key(TensorFile.open(tmp_path / str(at))) for at in range(4)}
    assert (len(digests), len(keys)) == (4, 4)
    assert {*map(len, keys)} == {32}


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        ({"key": np.zeros(32, np.uint8)}, {}),
        ({"key": np.zeros(32, np.uint8)}, {"concilia.secret": "other"}),
        ({"key": np.zeros(31, np.uint8)}, {"concilia.secret": "concilia.noise"}),
        ({"key": np.zeros(32, np.int8)}, {"concilia.secret": "concilia.noise"}),
        ({"other": np.zeros(32, np.uint8)}, {"concilia.secret": "concilia.noise"}),
        ({"key": np.zeros(32, np.uint8), "w": np.zeros(1)}, {"concilia.secret": "concilia.noise"}),
    ],
)
def test_what_is_no_key_is_none(tmp_path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    tensorfile.write(tmp_path / "key", arrays, metadata)
    with pytest.raises(MalformedFile, match="no key of noise"):
        noising.read_key(TensorFile.open(tmp_path / "key"))

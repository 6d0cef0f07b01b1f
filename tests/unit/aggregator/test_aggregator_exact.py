"""Exact means and what is built on them against `fractions.Fraction`: every bit, whatever values, order and groups."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import exact
from concilia_aggregator.exact import NotFinite, kernels, mean, order
from concilia_aggregator.exact.order import mean_of_middle, network
from concilia_aggregator.strategies import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Array = np.ndarray[Any, Any]

FLOATS = (np.float16, np.float32, np.float64)
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def nearest(value: Fraction, dtype: type[np.floating[Any]]) -> Any:
    """The value of a dtype that is nearest to a fraction, of two the even one: by comparing fractions."""
    with np.errstate(over="ignore"):
        guess = np.array([float(value)]).astype(dtype)[0]
        around = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    finite = [each for each in around if np.isfinite(each)]
    return min(finite, key=lambda each: (abs(Fraction(float(each)) - value), int(bits(np.array([each]))[0]) & 1))


def bits(array: Array) -> Array:
    return array.view(BITS[array.dtype.itemsize])


def expected(columns: Array, samples: list[int]) -> Array:
    """The mean of every row of columns of one dtype, in that dtype."""
    out = np.empty(columns.shape[1], columns.dtype)
    for j in range(columns.shape[1]):
        column = columns[:, j]
        total = sum((Fraction(float(x)) * n for x, n in zip(column, samples, strict=True)), Fraction(0))
        mean = total / sum(samples)
        out[j] = nearest(mean, columns.dtype.type)
        if mean == 0:
            out[j] = -0.0 if np.signbit(column).all() else 0.0
        elif out[j] == 0:
            out[j] = np.copysign(out[j], 1 if mean > 0 else -1)
    return out


def same(left: Array, right: Array) -> None:
    assert left.dtype == right.dtype
    assert left.tobytes() == right.tobytes(), (left, right)


@st.composite
def columns(draw: st.DrawFn, dtypes: tuple[Any, ...] = FLOATS, most: int = 9) -> tuple[Array, list[int]]:
    """Updates with every kind of value: any bits, close to each other, subnormal, opposite, huge beside tiny."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    count, size = draw(st.integers(1, most)), draw(st.integers(1, 6))
    unsigned = BITS[dtype.itemsize]
    drawn = draw(
        hnp.arrays(unsigned, (count, size), elements=st.integers(0, int(np.iinfo(unsigned).max)))
        | hnp.arrays(unsigned, (count, size), elements=st.integers(0, 40))
    )
    values = drawn.view(dtype).copy()
    values[~np.isfinite(values)] = draw(st.sampled_from([0.0, -0.0, float(np.finfo(dtype).max)]))
    if draw(st.booleans()):  # exact ties and cancellation
        values[draw(st.integers(0, count - 1))] = -values[0]
    if draw(st.booleans()):
        values[:, 0] = draw(st.sampled_from([0.0, -0.0]))
    equal = draw(st.booleans())
    one = st.integers(1, 3) | st.integers(1, 2**29 - 1) | st.integers(2**29, 2**56)
    samples = [draw(one)] * count if equal else [draw(one) for _ in range(count)]
    return values, samples


@given(columns())
def test_a_mean_is_the_fraction_rounded_once(given_: tuple[Array, list[int]]) -> None:
    values, samples = given_
    same(exact.weighted_mean(list(values), samples), expected(values, samples))


@given(columns(), st.randoms())
def test_order_changes_no_bit(given_: tuple[Array, list[int]], random: Any) -> None:
    values, samples = given_
    order = list(range(len(samples)))
    random.shuffle(order)
    same(
        exact.weighted_mean(list(values), samples),
        exact.weighted_mean([values[i] for i in order], [samples[i] for i in order]),
    )


@given(columns((np.float16, np.float32)), st.data())
def test_groups_change_no_bit(given_: tuple[Array, list[int]], data: st.DataObject) -> None:
    values, samples = given_
    samples = [n % 2**29 or 1 for n in samples]
    group = data.draw(st.lists(st.integers(0, 3), min_size=len(samples), max_size=len(samples)))
    sums = []
    for which in data.draw(st.permutations(sorted(set(group)))):
        members = [i for i in range(len(samples)) if group[i] == which]
        sums.append(exact.weighted_sum([values[i] for i in members], [samples[i] for i in members]))
    whole = exact.weighted_mean(list(values), samples)
    same(exact.mean_of(sums, sum(samples), values.dtype), whole)


@given(columns((np.float16, np.float32)))
def test_a_sum_holds_all_of_it(given_: tuple[Array, list[int]]) -> None:
    values, samples = given_
    samples = [n % 2**29 or 1 for n in samples]
    made = exact.weighted_sum(list(values), samples)
    for j in range(values.shape[1]):
        parts = [Fraction(float(made.values[j])), *(Fraction(float(x)) for x in made.rest[made.at == j])]
        assert sum(parts) == sum(Fraction(float(x)) * n for x, n in zip(values[:, j], samples, strict=True))
    assert (np.diff(made.at) >= 0).all()


@given(hnp.arrays(np.uint32, 50), st.integers(1, 2**29 - 1))
def test_a_single_update_is_its_own_mean(drawn: Array, samples: int) -> None:
    values = drawn.view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(-0.0))
    same(FedAvg().fold([values], [samples]), values)


@pytest.mark.parametrize("size", [1, 7, 4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11, 16, 20])
def test_every_tile_and_group_of_columns(size: int, count: int) -> None:
    random = np.random.default_rng(size + count)
    values = random.normal(size=(count, size)).astype(np.float32)
    values[:, :: max(size // 5, 1)] *= (2.0 ** random.integers(-60, 60, (count, 1))).astype(np.float32)
    samples = [int(n) for n in random.integers(1, 100_000, count)]
    got = exact.weighted_mean(list(values), samples)
    chosen = np.unique(
        np.r_[0 : min(size, 9), size - 1, random.integers(0, size, 40), np.arange(0, size, max(size // 5, 1))]
    )
    same(got[chosen], expected(values[:, chosen], samples))


@pytest.mark.parametrize("every", [1, 3, 70, 1500])
@pytest.mark.parametrize("count", [3, 8, 13])
def test_rows_that_need_care_are_few_or_many_and_anywhere(count: int, every: int) -> None:
    # Carefully added is what needs it and a little around, or all where much does: rows at the edges of both.
    random = np.random.default_rng(every)
    values = random.normal(1.0, 0.1, size=(count, 2100)).astype(np.float32)
    edges = [row for edge in (0, 64, 128, 960, 1024, 1088, 2048, 2100) for row in (edge - 1, edge) if 0 <= row < 2100]
    wide = np.unique(np.r_[edges, np.arange(0, 2100, every)])
    values[0, wide] = np.float32(2.0**70)
    values[1, wide] = np.float32(-(2.0**70))
    values[2, wide] *= np.float32(2.0**-70)
    samples = [1001] * 2 + [int(n) for n in random.integers(1, 100_000, count - 2)]
    chosen = np.unique(np.clip(np.r_[edges, np.array(edges) + 1, np.array(edges) - 1, wide[:40]], 0, 2099))
    same(exact.weighted_mean(list(values), samples)[chosen], expected(values[:, chosen], samples))
    summed = exact.weighted_sum(list(values), samples)
    same(exact.mean_of([summed], sum(samples), values.dtype)[chosen], expected(values[:, chosen], samples))


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_values_that_lie_anywhere(offset: int) -> None:
    values = np.random.default_rng(1).normal(size=(3, 100)).astype(np.float32)
    moved = [np.frombuffer(b"x" * offset + each.tobytes(), np.float32, offset=offset) for each in values]
    same(exact.weighted_mean(moved, [1, 2, 3]), exact.weighted_mean(list(values), [1, 2, 3]))
    strided = [np.repeat(each, 2)[::2] for each in values]
    same(exact.weighted_mean(strided, [1, 2, 3]), exact.weighted_mean(list(values), [1, 2, 3]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_has_no_mean(value: float, dtype: Any) -> None:
    blocks = [np.ones(9, dtype), np.array([1, 2, 3, 4, value, 6, 7, 8, 9], dtype)]
    with pytest.raises(NotFinite):
        exact.weighted_mean(blocks, [1, 1])
    with pytest.raises(NotFinite):
        mean_of_middle([*blocks, blocks[0]], 1)
    if dtype != np.float64:
        with pytest.raises(NotFinite):
            exact.weighted_sum(blocks, [1, 1])


@pytest.mark.parametrize("samples", [[0, 1], [-1, 3], [2**62, 2**62], [1]])
def test_samples_that_make_no_mean(samples: list[int]) -> None:
    with pytest.raises(ValueError, match=r"samples?|average"):
        exact.weighted_mean([np.ones(2, np.float32)] * 2, samples)


@given(columns(most=40), st.data())
def test_the_middle_is_the_fraction_rounded_once(given_: tuple[Array, list[int]], data: st.DataObject) -> None:
    values, _ = given_
    count = len(values)
    trimmed = data.draw(st.integers(0, (count - 1) // 2))
    kept = np.empty((count - 2 * trimmed, values.shape[1]), values.dtype)
    for j in range(values.shape[1]):
        ordered = sorted(values[:, j], key=lambda x: (Fraction(float(x)), not np.signbit(x)))
        kept[:, j] = ordered[trimmed : count - trimmed]
    same(mean_of_middle(list(values), trimmed), expected(kept, [1] * len(kept)))


@given(st.integers(1, 40), st.data())
def test_a_network_puts_the_middle_where_it_belongs(count: int, data: st.DataObject) -> None:
    trimmed = data.draw(st.integers(0, (count - 1) // 2))
    values = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))  # Knuth's 0-1 principle
    moved = list(values)
    for i, j in network(count, trimmed, count - trimmed).tolist():
        if moved[i] > moved[j]:
            moved[i], moved[j] = moved[j], moved[i]
    assert moved[trimmed : count - trimmed] == sorted(values)[trimmed : count - trimmed]


def test_every_library_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor is able to decides how fast a model comes out, and nothing about it."""
    rng = np.random.default_rng(4)
    values = np.concatenate(
        [
            rng.normal(size=(21, 5000)),
            rng.normal(size=(21, 5000)) * 2.0 ** rng.integers(-140, 120, (21, 5000)),
        ],
        axis=1,
    ).astype(np.float32)
    samples = [int(each) for each in rng.integers(1, 5000, 21)]

    def made(library: Path) -> list[Array]:
        loaded = kernels.Kernels(library)
        for module in (mean, order):
            monkeypatch.setattr(module, "load", lambda: loaded)
        blocks = list(values)
        sums = exact.weighted_sum(blocks, samples)
        return [
            exact.weighted_mean(blocks, samples),
            exact.weighted_mean([each.astype(np.float64) for each in blocks], samples),
            *(sums.values, sums.at, sums.rest),
            exact.mean_of([sums], sum(samples), values.dtype),
            mean_of_middle(blocks, 3),
            np.array([exact.squared_distance(blocks[0], blocks[1]), exact.squared_distance(blocks[0], None)]),
        ]

    first, *others = [made(library) for library in kernels.libraries()]
    assert first[3].size > 0, "some elements need more than one float64"
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            same(ours, theirs)


def test_the_library_is_chosen_by_what_the_processor_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for level in ("x86_64_v4", "x86_64_v3", "x86_64"):
        (tmp_path / f"kernels-{level}.so").touch()
    monkeypatch.setattr(kernels, "_FOLDER", tmp_path)
    monkeypatch.setattr(kernels, "_CPU", tmp_path / "cpuinfo")

    def chosen(flags: str) -> list[str]:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t: none\n\nprocessor\t: 1\n")
        return [path.stem.removeprefix("kernels-") for path in kernels.libraries()]

    third = "abm avx avx2 bmi1 bmi2 f16c fma movbe"
    assert chosen("sse2") == ["x86_64"]
    assert chosen(third) == ["x86_64_v3", "x86_64"]
    assert chosen(third.replace(" fma", "")) == ["x86_64"]
    assert chosen(f"{third} avx512bw avx512cd avx512dq avx512f avx512vl") == ["x86_64_v4", "x86_64_v3", "x86_64"]
    (tmp_path / "cpuinfo").unlink()
    assert [path.stem for path in kernels.libraries()] == ["kernels-x86_64"]
    for path in tmp_path.glob("*.so"):
        path.unlink()
    with pytest.raises(ImportError, match="install the package anew"):
        kernels.libraries()

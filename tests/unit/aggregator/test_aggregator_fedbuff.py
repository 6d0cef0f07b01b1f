"""Buffered asynchronous aggregation: its weights, its fold beside the paper's formula, and when its rounds are over."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator import dispatch, rounds, staleness, windows
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.rounds import Facts, JobState, RoundFacts, decide
from concilia_aggregator.strategies import FedAvg, fedbuff, make
from concilia_kit import tensorfile
from concilia_kit.encodings import STALENESS, encode, staleness_of
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.chain import Reason, RoundStatus
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.jobs import JobSpec, Phase
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import MAX_STALENESS, Architecture, LocalTraining, TrainTask, UpdateMetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from .conftest import METRICS, model

FEDBUFF = Strategy(name=StrategyName.FEDBUFF)
A, B, C, D = "0xa", "0xb", "0xc", "0xd"


def spec(**changes: Any) -> JobSpec:
    fields = {"name": "j", "initial": "0" * 64, "quorum": 2, "rounds": 3, "strategy": FEDBUFF.model_dump(), **changes}
    return JobSpec.model_validate(fields)


def late(rounds_: int) -> UpdateMetrics:
    return METRICS.model_copy(update={"staleness": rounds_})


# Weights


@given(st.integers(0, 10_000))
def test_a_weight_is_the_papers_to_the_nearest_whole_number(tau: int) -> None:
    found = fedbuff.weight(tau)
    assert found >= 1
    # |found - 2^16 / sqrt(1 + tau)| <= 1/2, in whole numbers
    assert (2 * found - 1) ** 2 * (1 + tau) <= (2 * fedbuff.UNIT) ** 2 <= (2 * found + 1) ** 2 * (1 + tau)
    assert found <= fedbuff.weight(max(0, tau - 1))


def test_what_is_not_late_weighs_a_unit_and_leaves_nothing_to_the_base() -> None:
    assert fedbuff.weight(0) == fedbuff.UNIT == 65536
    assert fedbuff.weight(3) == 32768
    assert fedbuff.base_weight([fedbuff.weight(0)] * 5) == 0
    assert fedbuff.base_weight([fedbuff.weight(0), fedbuff.weight(3)]) == 32768
    with pytest.raises(ValueError, match="earlier"):
        fedbuff.weight(-1)


# The fold


def written(path: Path, tensors: dict[str, Any], tau: int | str = 0) -> TensorFile:
    tensorfile.write(path, tensors, {STALENESS: str(tau)} if tau else None)
    return TensorFile.open(path)


def folded(
    folder: Path, base: dict[str, Any], updates: list[dict[str, Any]], taus: list[int], samples: list[int] | None = None
) -> dict[str, Any]:
    files = [written(folder / f"u{at}", each, tau) for at, (each, tau) in enumerate(zip(updates, taus, strict=True))]
    recipe = Recipe(Architecture.RESNET18, 7, FEDBUFF)
    samples = samples or [10] * len(updates)
    fold(files, samples, recipe, folder / "out", written(folder / "base", base))
    file = TensorFile.open(folder / "out")
    return {name: np.array(file.tensor(name)) for name in file}


def test_a_fold_is_the_papers_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_MOST", 16)
    monkeypatch.setattr(windows, "_LEAST", 8)
    base, updates = model(0), [model(number, 0.3) for number in range(1, 6)]
    taus = [0, 4, 1, 20, 0]
    made = folded(tmp_path, base, updates, taus, samples=[1, 999, 5, 7, 3])
    for name in ("layer.weight", "layer.bias"):
        began = base[name].astype(np.float64)
        step = sum((each[name] - began) / np.sqrt(1 + tau) for each, tau in zip(updates, taus, strict=True)) / 5
        assert made[name].dtype == np.float32
        # Weights are whole numbers of 2^-16, so that each step is off by 2^-17 of it at most.
        assert np.abs(made[name] - (began + step)).max() < 2**-16 * 5
        exact = [
            sum(
                (Fraction(fedbuff.weight(tau), fedbuff.UNIT) * (Fraction(float(u)) - Fraction(float(b))))
                for u, tau in zip(row, taus, strict=True)
            )
            / 5
            + Fraction(float(b))
            for b, row in zip(base[name].flat, zip(*(each[name].flat for each in updates), strict=True), strict=True)
        ]
        assert np.array_equal(made[name].ravel(), np.array([float(each) for each in exact]).astype(np.float32))
    assert made["norm.num_batches_tracked"] == 5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 1000)), min_size=1, max_size=6))
def test_where_nothing_is_late_it_is_the_plain_mean(
    tmp_path_factory: pytest.TempPathFactory, given_: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("mean")
    updates = [model(seed) for seed, _ in given_]
    made = folded(folder, model(100, 9.0), updates, [0] * len(updates), [samples for _, samples in given_])
    for name in ("layer.weight", "layer.bias"):
        assert np.array_equal(
            made[name],
            FedAvg().fold([each[name].ravel() for each in updates], [1] * len(updates)).reshape(made[name].shape),
        )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, MAX_STALENESS), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_changes_no_bit_and_no_variance_is_negative(
    tmp_path_factory: pytest.TempPathFactory, taus: list[int], random: Any
) -> None:
    folder = tmp_path_factory.mktemp("order")
    updates = [{name: np.abs(value) for name, value in model(number).items()} for number in range(len(taus))]
    base = {name: np.abs(value) for name, value in model(50, 1e-3).items()}
    made = folded(folder, base, updates, taus)
    places = list(range(len(taus)))
    random.shuffle(places)
    again = folded(folder, base, [updates[at] for at in places], [taus[at] for at in places])
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert all((made[name] >= 0).all() for name in made)


def test_more_updates_than_are_added_at_a_time_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taus = [number % 4 for number in range(9)]
    updates = [model(number) for number in range(9)]
    at_once = folded(tmp_path, model(20), updates, taus)
    monkeypatch.setattr("concilia_aggregator.folding.GROUP", 2)
    by_groups = folded(tmp_path, model(20), updates, taus)
    assert all(np.array_equal(at_once[name], by_groups[name]) for name in at_once)


def test_counters_never_run_backwards(tmp_path: Path) -> None:
    base = model(9)
    assert folded(tmp_path, base, [model(3), model(5)], [0, 2])["norm.num_batches_tracked"] == 9


def test_what_cannot_be_weighed_is_not_folded(tmp_path: Path) -> None:
    recipe = Recipe(Architecture.RESNET18, 2, FEDBUFF)
    with pytest.raises(ValueError, match="base"):
        fold([written(tmp_path / "u", model(1), 1)], [1], recipe, tmp_path / "out", None)
    for text in ("-1", "0", "1.5", "01", "1e3", "\u0663", "9" * 10):
        with pytest.raises(MalformedFile, match="how late"):
            fold([written(tmp_path / "u", model(1), text)], [1], recipe, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_other_strategies_weigh_by_samples_whatever_a_file_says(tmp_path: Path) -> None:
    recipe = Recipe(Architecture.RESNET18, 2, Strategy())
    files = [written(tmp_path / f"u{number}", model(number), number) for number in (0, 1)]
    plain = [written(tmp_path / f"p{number}", model(number)) for number in (0, 1)]
    digest = fold(files, [3, 4], recipe, tmp_path / "out")
    assert digest == fold(plain, [3, 4], recipe, tmp_path / "again")


@pytest.mark.parametrize("text", ["none", "float16+zstd"])
def test_a_late_updates_file_says_so(tmp_path: Path, text: str) -> None:
    base = written(tmp_path / "base", model(0))
    for tau in (0, 3):
        encode(tmp_path / "u", Encoding.parse(text), model(1), base, staleness=tau)
        assert staleness_of(TensorFile.open(tmp_path / "u")) == tau


# What a job may ask for, and when a round is over


def test_what_does_not_go_with_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="no over_selection"):
        spec(over_selection=1.3)
    for encoding in ({"name": "int8"}, {"name": "topk", "share": 0.01}):
        with pytest.raises(ValidationError, match="fedbuff cannot use"):
            spec(encoding=encoding)
    assert spec(encoding={"name": "float16", "zstd": True}, recording="merkle").closes_at_quorum
    assert not JobSpec(name="j", initial="0" * 64).closes_at_quorum


def test_a_round_closes_with_its_buffer_whoever_filled_it() -> None:
    state = JobState(Phase.TRAINING, "0" * 64, round=2, deadline=1100, cohort=frozenset({A, B, C}))

    def shown(*recorded: str, accepted: int | None = None) -> Facts:
        count = len(recorded) if accepted is None else accepted
        ledger = RoundFacts(RoundStatus.OPEN, "0" * 64, 1100, frozenset(recorded), count)
        return Facts(1000, frozenset({A, B, C, D}), ledger)

    waiting = decide(spec(), state, shown(D))
    assert waiting == rounds.Wait("1 of 2 updates are missing; 3 hospitals were asked")
    for facts in (shown(A, B), shown(D, B)):
        assert decide(spec(), state, facts) == rounds.Enter(replace(state, phase=Phase.FOLDING))
    assert isinstance(decide(spec(), state, shown(A, B, accepted=1)), rounds.Wait)
    assert isinstance(decide(spec(), state, replace(shown(A), now=1103)), rounds.AbortRound)


def test_who_still_trains_is_not_waited_for_to_evaluate() -> None:
    state = JobState(Phase.EVALUATING, "0" * 64, round=1, closed=1, deadline=1100, cohort=frozenset({A, B, C}))
    assert isinstance(decide(spec(), state, Facts(1000, evaluated=frozenset({A}))), rounds.Wait)
    assert isinstance(decide(spec(), state, Facts(1000, evaluated=frozenset({A, B}))), rounds.Enter)
    assert rounds.early_evaluation(spec(), state, 1, 1000) is not None
    assert rounds.early_evaluation(spec(), state, 2, 1000) is None


def test_all_who_are_there_are_asked_and_who_comes_later_is() -> None:
    planned = decide(spec(), JobState(Phase.OPENING, "0" * 64, round=1), Facts(1000, frozenset({A, B, C})))
    assert isinstance(planned, rounds.Enter)
    assert planned.state.cohort == {A, B, C}
    state = replace(planned.state, phase=Phase.TRAINING)
    tasks = [TrainTask.model_validate(row.task) for row in dispatch.trainings("ab" * 32, spec(), state, {})]
    assert [task.asynchronous for task in tasks] == [True] * 3
    newcomer = dispatch.assigned("ab" * 32, spec(), state, D, frozenset(), 1000)
    assert newcomer == tasks[0]
    plain = dispatch.trainings("ab" * 32, spec(strategy={"name": "fedavg"}), state, {})
    assert all("asynchronous" not in row.task for row in plain)
    assert make(FEDBUFF).local(LocalTraining(proximal_mu=3)).proximal_mu == 0


# What an update says of itself


@pytest.mark.parametrize(
    ("said", "metrics", "number", "reason"),
    [
        (0, METRICS, 1, None),
        (1, late(1), 2, None),
        (1, None, 2, None),  # metrics that were lost weigh nothing
        (2, late(2), 2, Reason.SAMPLE_COUNT),  # there was no round 0
        (1, late(1), 1, Reason.SAMPLE_COUNT),
        (MAX_STALENESS, late(MAX_STALENESS), 99, None),
        (MAX_STALENESS + 1, late(MAX_STALENESS + 1), 99, Reason.SAMPLE_COUNT),
        (1, METRICS, 9, Reason.SAMPLE_COUNT),  # people would be told something else
        (0, late(1), 9, Reason.SAMPLE_COUNT),
        ("-1", METRICS, 9, Reason.MALFORMED_FILE),
    ],
)
def test_a_staleness_that_cannot_be(
    tmp_path: Path, said: int | str, metrics: UpdateMetrics | None, number: int, reason: Reason | None
) -> None:
    assert staleness.fault(written(tmp_path / "u", model(1), said), metrics, number) == reason


def test_nothing_may_be_called_late_in_a_job_that_waits_for_all() -> None:
    assert (staleness.claimed(METRICS), staleness.claimed(None)) == (None, None)
    assert staleness.claimed(late(1)) is Reason.SAMPLE_COUNT


def test_metrics_of_what_is_not_late_have_the_digest_they_had() -> None:
    assert "staleness" not in METRICS.model_dump(mode="json")
    with pytest.raises(ValidationError):
        UpdateMetrics.model_validate(METRICS.model_dump() | {"staleness": -1})

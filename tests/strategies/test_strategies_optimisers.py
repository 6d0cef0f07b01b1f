"""Server optimisers, fair and normalised averaging, control variates: worked numbers, the papers' equations written
anew, and Flower's own where it has one.

Flower starts FedAdam's, FedYogi's and FedAdagrad's second moment with 0 where the paper has tau^2, and corrects
FedAdam's rate as Kingma and Ba do for a bias: both are set here to what the paper says before its step is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from concilia_aggregator.strategies.class_balanced import ClassBalanced
from concilia_aggregator.strategies.combining import combination
from concilia_aggregator.strategies.fednova import FedNova
from concilia_aggregator.strategies.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi, Optimised, Optimiser
from concilia_aggregator.strategies.geometry import Fact, Geometry, gram_of
from concilia_aggregator.strategies.qfedavg import QFedAvg
from concilia_aggregator.strategies.scaffold import Scaffold
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdagrad as TheirAdagrad
from flwr.serverapp.strategy import FedAdam as TheirAdam
from flwr.serverapp.strategy import FedAvg as TheirAvg
from flwr.serverapp.strategy import FedAvgM as TheirMomentum
from flwr.serverapp.strategy import FedYogi as TheirYogi
from flwr.serverapp.strategy.qfedavg import compute_delta_and_h
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from .conftest import CASES, Round, Wide, close, rounds

thoroughly = settings(max_examples=CASES, deadline=None, derandomize=True)
RATE, BETA1, BETA2, TAU = 0.1, 0.9, 0.99, 1e-2


def steps(optimiser: Optimiser, among: Sequence[Round]) -> list[Wide]:
    """The models of rounds one after another, each round's differences put onto the model before; float64 state, so
    that what is compared is the rule and not float32."""
    model, state, models = among[0].base, [np.zeros_like(among[0].base) for _ in optimiser.state], []
    for each in among:
        mean = np.average(each.differences, axis=0, weights=each.samples)
        added, state = optimiser.step(mean, state)
        model = model + added
        models.append(model)
    return models


def of_flower(theirs: Any, among: Sequence[Round], monkeypatch: pytest.MonkeyPatch, before: Any) -> list[Wide]:
    """What Flower's strategy makes of the same means, its averaging replaced by the mean that it would come to."""
    model, models = among[0].base, []
    for number, each in enumerate(among, 1):
        mean = model + np.average(each.differences, axis=0, weights=each.samples)
        record = ArrayRecord({"x": Array(mean)})
        monkeypatch.setattr(TheirAvg, "aggregate_train", lambda *_, record=record: (record, None))
        theirs.current_arrays = ArrayRecord({"x": Array(model)}) if isinstance(theirs, TheirMomentum) else {"x": model}
        before(theirs, number, model)
        record, _ = theirs.aggregate_train(number, [])
        model = record["x"].numpy()
        models.append(model)
    return models


def as_the_paper_starts(theirs: Any, number: int, model: Wide) -> None:
    if number == 1:
        theirs.v_t = {"x": np.full_like(model, TAU**2)}
        theirs.m_t = {"x": np.zeros_like(model)}
    if isinstance(theirs, TheirAdam):
        theirs.eta = RATE * (1 - BETA1 ** (number + 1.0)) / np.sqrt(1 - BETA2 ** (number + 1.0))


PAIRS: dict[str, tuple[Any, Any]] = {
    "fedadam": (FedAdam(RATE, BETA1, BETA2, TAU), lambda: TheirAdam(eta=RATE, beta_1=BETA1, beta_2=BETA2, tau=TAU)),
    "fedyogi": (FedYogi(RATE, BETA1, BETA2, TAU), lambda: TheirYogi(eta=RATE, beta_1=BETA1, beta_2=BETA2, tau=TAU)),
    "fedadagrad": (FedAdagrad(RATE, 0.0, BETA2, TAU), lambda: TheirAdagrad(eta=RATE, tau=TAU)),
    "fedavgm": (FedAvgM(RATE, BETA1), lambda: TheirMomentum(server_learning_rate=RATE, server_momentum=BETA1)),
}


@pytest.mark.parametrize("name", PAIRS)
@thoroughly
@given(among=st.lists(rounds(most=4), min_size=1, max_size=4).map(lambda some: _of_one_size(some)))
def test_three_rounds_are_flowers(name: str, among: list[Round]) -> None:
    ours, theirs = PAIRS[name]
    before = (lambda *_: None) if name == "fedavgm" else as_the_paper_starts
    with pytest.MonkeyPatch.context() as patch:
        for mine, his in zip(steps(ours, among), of_flower(theirs(), among, patch, before), strict=True):
            close(mine, his, among[0])


def _of_one_size(some: list[Round]) -> list[Round]:
    size = min(len(each.base) for each in some)
    return [Round(each.base[:size], each.updates[:, :size], each.samples) for each in some]


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [
        # Two rounds with a mean difference of 1, by hand; rate 0.1, both betas and tau 0.5, so that v begins with 0.25.
        # m: 0.5, 0.75. v: 0.25/2 + 1/2 = 0.625, 0.8125; steps 0.1 * m / (sqrt(v) + 0.5).
        (FedAdam(0.1, 0.5, 0.5, 0.5), [0.1 * 0.5 / (0.625**0.5 + 0.5), 0.1 * 0.75 / (0.8125**0.5 + 0.5)]),
        # v: 0.25 + 0.5 = 0.75 (below 1, so it grows), 0.75 + 0.5 = 1.25.
        (FedYogi(0.1, 0.5, 0.5, 0.5), [0.1 * 0.5 / (0.75**0.5 + 0.5), 0.1 * 0.75 / (1.25**0.5 + 0.5)]),
        # v: 1.25, 2.25; m: 1, 1 without momentum.
        (FedAdagrad(0.1, 0.0, 0.0, 0.5), [0.1 / (1.25**0.5 + 0.5), 0.1 / (1.5 + 0.5)]),
        # v: 1, 1.5.
        (FedAvgM(0.1, 0.5), [0.1, 0.15]),
    ],
)
def test_worked_numbers(optimiser: Optimiser, expected: list[float]) -> None:
    strategy = Optimised(optimiser)
    base, state = np.zeros(1, np.float32), [np.zeros(1, np.float32) for _ in strategy.state]
    for number, step in enumerate(expected, 1):
        geometry = Geometry([Fact(1), Fact(3)], lambda: np.zeros((2, 2)))
        updates = [base + np.float32(4), base]  # their mean by samples is 1 more
        model, state = strategy.remember(geometry, number).step(updates, base, state)
        assert model.dtype == np.float32
        assert model[0] - base[0] == pytest.approx(step, rel=1e-6)
        base = model


@thoroughly
@given(rounds(), st.sampled_from([0.0, 0.5, 1.0, 5.0]), st.data())
def test_q_fedavg_is_flowers(among: Round, q: float, data: st.DataObject) -> None:
    count = len(among.samples)
    losses = data.draw(st.lists(st.floats(0.01, 10), min_size=count, max_size=count))
    rate = 0.1
    deltas, hs = [], []
    for row, loss in zip(among.updates, losses, strict=True):
        delta, h = compute_delta_and_h([among.base.copy()], [row.copy()], q, 1 / rate, loss)
        deltas.append(delta[0])
        hs.append(h)
    theirs = among.base - np.sum(deltas, axis=0) / np.sum(hs)
    facts = [Fact(each, loss=loss) for each, loss in zip(among.samples, losses, strict=True)]
    geometry = Geometry(facts, lambda: gram_of(among.differences))
    close(among.folded(combination(QFedAvg(q, rate).coefficients(geometry))), theirs, among)


@thoroughly
@given(rounds(), st.sampled_from([0.0, 0.5, 0.9]), st.data())
def test_fednova_is_its_papers(among: Round, momentum: float, data: st.DataObject) -> None:
    """`|a|_1` by its definition: the sum over steps of what each gradient comes to in the end."""
    count = len(among.samples)
    taken = data.draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    norms = [sum(sum(momentum**power for power in range(steps - at)) for at in range(steps)) for steps in taken]
    shares = np.array(among.samples) / sum(among.samples)
    theirs = among.base + (shares @ norms) * np.sum(
        [share * row / norm for share, row, norm in zip(shares, among.differences, norms, strict=True)], axis=0
    )
    facts = [Fact(each, 0.1 * norm) for each, norm in zip(among.samples, norms, strict=True)]
    geometry = Geometry(facts, lambda: np.zeros((count, count)))
    close(among.folded(combination(FedNova().coefficients(geometry))), theirs, among)


@thoroughly
@given(rounds(), st.integers(2, 9), st.data())
def test_class_balanced_weighs_as_the_balanced_error_does(among: Round, classes: int, data: st.DataObject) -> None:
    """The mean over classes of the mean error over a class's images, taken apart by hospital."""
    count = len(among.samples)
    row = st.lists(st.integers(0, 5000), min_size=classes, max_size=classes)
    table = np.array(data.draw(st.lists(row, min_size=count, max_size=count)))
    assume(table.any())
    errors = np.random.default_rng(0).random((count, classes))  # of each hospital's images of each class
    there = table.sum(0) > 0
    balanced = ((errors * table).sum(0)[there] / table.sum(0)[there]).mean()
    facts = [Fact(each, class_counts=tuple(line.tolist())) for each, line in zip(among.samples, table, strict=True)]
    geometry = Geometry(facts, lambda: np.zeros((count, count)))
    weights = ClassBalanced().coefficients(geometry)
    own = np.divide(table, table.sum(0), out=np.zeros(table.shape), where=there)
    assert weights == pytest.approx(own[:, there].mean(1), abs=1e-12)
    assert balanced == pytest.approx(sum((errors * own)[:, there].sum(1)) / there.sum())
    close(among.folded(combination(weights)), among.base + np.array(weights) @ np.array(among.differences), among)


def test_whatever_a_large_hospital_has_of_one_class_it_is_one_class() -> None:
    nevi, mixed = Fact(4000, class_counts=(0, 4000)), Fact(40, class_counts=(30, 10))
    geometry = Geometry([nevi, mixed], lambda: np.eye(2))
    assert ClassBalanced().coefficients(geometry) == pytest.approx([4000 / 4010 / 2, (1 + 10 / 4010) / 2])


@pytest.mark.parametrize("counts", [((1, 2), (1, 2, 3)), ((0, 0), (0, 0))])
def test_counts_that_weigh_nothing_are_refused(counts: tuple[tuple[int, ...], ...]) -> None:
    geometry = Geometry([Fact(1, class_counts=each) for each in counts], lambda: np.eye(2))
    with pytest.raises(ValueError, match="class"):
        ClassBalanced().coefficients(geometry)


def test_scaffold_keeps_what_its_hospitals_add_up_to() -> None:
    """Algorithm 1 by the letter, on a least-squares problem of three hospitals: the server's control variate is the
    mean of theirs in every round, and the model comes to the optimum that FedAvg with as many local steps misses."""
    source = np.random.default_rng(0)
    problems = [(np.diag(source.uniform(0.2, 2.0, 4)), source.normal(size=4) * 3) for _ in range(3)]
    optimum = np.linalg.solve(sum(a for a, _ in problems), sum(a @ b for a, b in problems))
    rate, count = 0.1, 10

    def rounds_of(corrected: bool) -> Wide:
        model = np.zeros(4)
        own = [np.zeros(4) for _ in problems]
        control = np.zeros(4, np.float32)
        strategy = Scaffold(len(problems))
        geometry = Geometry([Fact(1, count * rate)] * 3, lambda: np.zeros((3, 3)))
        for number in range(1, 200):
            updates = []
            for index, (a, b) in enumerate(problems):
                local = model.copy()
                correction = control - own[index] if corrected else 0.0
                for _ in range(count):
                    local -= rate * (a @ (local - b) + correction)
                own[index] = own[index] - control + (model - local) / (count * rate)
                updates.append(local)
            model, (control,) = strategy.remember(geometry, number).step(updates, model, [control])
            if corrected:
                np.testing.assert_allclose(control, np.mean(own, axis=0), atol=1e-5)
        return model

    assert np.abs(rounds_of(True) - optimum).max() < 1e-3
    assert np.abs(rounds_of(False) - optimum).max() > 1e-2


def test_what_a_hospital_does_not_say_is_asked_for() -> None:
    silent = Geometry([Fact(1, 0.3, 0.1), Fact(1)], lambda: np.eye(2))
    for rule in (FedNova(), QFedAvg(1.0, 0.1), ClassBalanced()):
        with pytest.raises(ValueError, match="every hospital's"):
            rule.coefficients(silent)
    with pytest.raises(ValueError, match="every hospital's"):
        Scaffold(2).remember(silent, 1)

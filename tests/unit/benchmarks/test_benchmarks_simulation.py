"""The simulator trains, screens and folds as the services do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from concilia_aggregator import screening
from concilia_aggregator.screening import Base
from concilia_client_node import augmentation, training
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import mix
from concilia_kit import tensorfile
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.training import Balance, LocalTraining, Personal
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import features, simulation
from benchmarks.federated_runs import BASELINES, parse
from benchmarks.server import LIMITS, Layout, Model, Update, screen
from benchmarks.simulation import Hospital, Plan

WIDTH = 12
LOCAL = LocalTraining(batch_size=16, learning_rate=0.1, balance=Balance.SAMPLING, augment=False)
STRATEGIES = (
    "fedavg",
    "fedprox:proximal_mu=0.1",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "scaffold",
    "fednova",
    "fedbn",
    "fedrep",
    "qfedavg",
    "class_balanced",
    "fedbuff",
    "median",
    "trimmed_mean:trim=0.2",
    "norm_clipping",
    "dp_fedavg:radius=5,noise=0.01",
    "geometric_median",
    "krum",
    "multi_krum",
    "bulyan",
    "centred_clipping",
    "fltrust",
    "nnm+trimmed_mean",
    "bucketing+geometric_median:bucket=2",
)


def pictures(source: np.random.Generator, count: int) -> tuple[Pictures, torch.Tensor]:
    """Some that a linear layer can tell apart, and the same with a sign that it can see."""
    labels = np.arange(count) % len(CLASSES)
    values = source.normal(0, 0.3, (count, WIDTH))
    values[np.arange(count), labels] += 2.0
    signed = values.copy()
    signed[:, WIDTH - 1] += 3.0
    made = [torch.from_numpy(_padded(each)) for each in (values, signed)]
    lesions = tuple(f"L{index}" for index in range(count))
    return Pictures(made[0], tuple(labels.tolist()), lesions), made[1]


def _padded(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    whole = np.zeros((len(values), features.WIDTH))
    whole[:, :WIDTH] = values
    return features.as_pictures(whole)


@pytest.fixture(scope="module")
def hospitals() -> list[Hospital]:
    source = np.random.default_rng(0)
    found = []
    for index in range(5):
        (trained, stamped), (held, stamped_held) = pictures(source, 42 + 7 * index), pictures(source, 21)
        found.append(Hospital(f"site {index}", trained, held, stamped, stamped_held))
    return found


def build(kind: str = "linear") -> simulation.Callable[[int], torch.nn.Module]:
    return lambda seed: features.head(kind, len(CLASSES), seed)


def plan(strategy: str = "fedavg", **given_: object) -> Plan:
    return Plan(parse(strategy), LOCAL, **{"rounds": 4, "judged": 1, "seed": 1, **given_})  # type: ignore[arg-type]


def test_features_come_through_the_nodes_normalisation() -> None:
    values = np.random.default_rng(0).uniform(0, 6, (5, features.WIDTH)).astype(np.float32)
    shown = augmentation.as_input(torch.from_numpy(features.as_pictures(values)))
    np.testing.assert_allclose(shown.flatten(1)[:, : features.WIDTH].numpy(), values, atol=1e-5)
    assert shown.flatten(1)[:, features.WIDTH :].abs().max() < 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns(hospitals: Sequence[Hospital], strategy: str) -> None:
    made = simulation.run(plan(strategy, rounds=6), hospitals, build("layer:16" if strategy == "fedrep" else "linear"))
    assert made.lost == 0
    assert not made.rejected
    assert made.scores.balanced_accuracy > (0.25 if strategy == "qfedavg" else 0.6), made


@pytest.mark.parametrize("baseline", BASELINES)
def test_training_without_a_federation_is_a_measure_too(hospitals: Sequence[Hospital], baseline: str) -> None:
    if baseline == "pooled":
        made = simulation.pooled(plan(), hospitals, build())
    else:
        made = simulation.alone(plan(), hospitals, build(), everywhere=baseline == "alone_everywhere")
    assert made.scores.balanced_accuracy > 0.6


def test_one_hospital_alone_is_the_nodes_training(hospitals: Sequence[Hospital]) -> None:
    network = build()(1)
    training.train(network, hospitals[0].training, LOCAL, mix(1, 1, 0), torch.device("cpu"))
    federation = simulation._Federation(plan(rounds=1), hospitals[:1], build())
    federation.run()
    expected = Layout({n: t.numpy() for n, t in network.state_dict().items()}).model(
        {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    )
    np.testing.assert_array_equal(federation._model.floats, expected.floats)


@pytest.mark.parametrize(("attack", "reason"), [("nan", "non_finite"), ("scaled_counts", "sample_count")])
def test_screening_stops_what_it_is_there_for(hospitals: Sequence[Hospital], attack: str, reason: str) -> None:
    attacked = plan(attack=attack, share=0.4)
    made = simulation.run(attacked, hospitals, build())
    assert made.rejected == {reason: 2 * 4}
    assert made.lost == 0
    open_ = simulation.run(plan(attack=attack, share=0.4, screened=False), hospitals, build())
    assert open_.lost == (4 if attack == "nan" else 0)
    assert open_.scores.balanced_accuracy < made.scores.balanced_accuracy - 0.2


def test_a_mean_falls_where_a_median_stands(hospitals: Sequence[Hospital]) -> None:
    scores = {
        name: simulation.run(plan(name, attack="ipm:10", share=0.4), hospitals, build()).scores.balanced_accuracy
        for name in ("fedavg", "median")
    }
    assert scores["median"] > 0.6 > 0.4 > scores["fedavg"]


def test_a_backdoor_opens_where_nobody_robust_folds(hospitals: Sequence[Hospital]) -> None:
    clean = simulation.run(plan(rounds=8), hospitals, build()).scores
    opened = simulation.run(plan(attack="replacement", share=0.4, rounds=8, screened=False), hospitals, build()).scores
    assert clean.backdoor < 0.2
    assert opened.backdoor > 0.6
    assert math.isclose(sum(clean.sites) / 5, clean.balanced_accuracy, abs_tol=0.1)


def test_runs_are_repeatable_and_seeds_differ(hospitals: Sequence[Hospital]) -> None:
    models = []
    for seed in (1, 1, 2):
        federation = simulation._Federation(plan(attack="gaussian:1", share=0.2, seed=seed), hospitals, build())
        federation.run()
        models.append(federation._model.floats)
    np.testing.assert_array_equal(models[0], models[1])
    assert (models[0] != models[2]).any()


def test_what_is_personal_stays_at_home(hospitals: Sequence[Hospital]) -> None:
    network = build("batch:8")(1)
    kept = simulation.personal(network, Personal.NORMALISATION)
    assert {name.rpartition(".")[2] for name in kept} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    head = simulation.personal(network, Personal.HEAD)
    assert len(head) == 2
    assert not head & kept
    federation = simulation._Federation(plan("fedbn"), hospitals, build("batch:8"))
    before = federation._model.floats.copy()
    federation.run()
    mask = federation._layout.mask(kept)
    np.testing.assert_array_equal(federation._model.floats[mask], before[mask])
    assert (federation._model.floats[~mask] != before[~mask]).any()
    own = [node.own for node in federation._nodes]
    assert own[0] is not None
    assert own[1] is not None
    assert (own[0][mask] != own[1][mask]).any()


def test_scaffolds_variates_are_kept_as_the_nodes_keep_them(hospitals: Sequence[Hospital]) -> None:
    federation = simulation._Federation(plan("scaffold", rounds=3), hospitals, build())
    federation.run()
    own = [node.control for node in federation._nodes]
    assert all(each is not None for each in own)
    # All take part in each round, so that the consortium's is the mean of theirs.
    control = federation._server.control
    assert control is not None
    assert np.abs(control).max() > 1e-3
    np.testing.assert_allclose(np.mean([each for each in own if each is not None], axis=0), control, atol=1e-5)


def test_attacks_on_late_work_are_refused(hospitals: Sequence[Hospital]) -> None:
    with pytest.raises(ValueError, match="FedBuff"):
        simulation.run(plan("fedbuff", attack="alie", share=0.4), hospitals, build())


def test_vectors_have_all_tensors() -> None:
    network = build("batch:8")(3)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    layout = Layout(tensors)
    back = layout.tensors(layout.model(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 5.0, 40.0, math.inf, math.nan]),
    st.integers(0, 60),
    st.integers(1, 50),
)
def test_screening_is_the_services(
    tmp_path_factory: pytest.TempPathFactory, seed: int, far: float, samples: int, registered: int
) -> None:
    folder, source = tmp_path_factory.mktemp("screened"), np.random.default_rng(seed)
    values = source.normal(size=30).astype(np.float32)
    update = values + np.float32(1) * source.normal(size=30).astype(np.float32)
    update[3] = far if not math.isfinite(far) else update[3] * far * 10
    for name, each in (("base", values), ("update", update)):
        tensorfile.write(folder / name, {"a": each[:10], "b": each[10:].reshape(4, 5)})
    theirs = screening.screen(
        TensorFile.open(folder / "update"), Base.of(TensorFile.open(folder / "base")), samples, registered, LIMITS
    )
    nothing = np.zeros(0, np.int64)
    ours = screen(Update(0, Model(update, nothing), samples, registered, None, None), Model(values, nothing))
    assert ours == theirs


def test_a_strategy_is_read_with_its_parameters() -> None:
    spec = parse("bucketing+geometric_median:bucket=3")
    assert (spec.name, spec.mixing, spec.bucket) == ("geometric_median", "bucketing", 3)
    for text in ("nothing", "median:trim=x", "nnm+fedavg", "odd+median", "median:what=1"):
        with pytest.raises(ValueError, match="is no strategy"):
            parse(text)


def test_the_whole_network_trains_too(tmp_path: Path) -> None:
    source = np.random.default_rng(1)
    images = [torch.from_numpy(source.integers(0, 256, (14, 3, 32, 32), dtype=np.uint8)) for _ in range(4)]
    labels, lesions = tuple(range(7)) * 2, tuple(map(str, range(14)))
    sides = [Pictures(each, labels, lesions) for each in images[:2]]
    site = Hospital("a", sides[0], sides[1], images[2], images[3])
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 7))
    made = simulation.run(plan(rounds=1, attack="backdoor", share=0.5), [site, site], lambda seed: network)
    assert made.lost == 0

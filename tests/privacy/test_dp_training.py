"""DP-SGD: what a lesion may do to an update, whatever pictures it has; and that nobody can know the noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from concilia_client_node import networks, private_training, training
from concilia_client_node.errors import Refused
from concilia_client_node.pictures import Pictures
from concilia_client_node.private_training import Gradients, Noised
from concilia_client_node.randomness import SecretRandomness
from concilia_client_node.sampling import Sampled
from concilia_kit import tensorfile
from concilia_kit.adapters import layout
from concilia_kit.tensorfile import TensorSpec
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import Architecture, Balance, LocalTraining, Optimizer, Trained
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

CPU = torch.device("cpu")
CLIP = 0.7
ONE_STEP = LocalTraining(
    balance=Balance.NONE,
    batch_size=1024,
    learning_rate=1.0,
    momentum=0,
    weight_decay=0,
    augment=False,
    trained=Trained.ALL,
)


class Known(SecretRandomness):
    """Draws every lesion, its last picture, and adds nothing."""

    def uniforms(self, count: int) -> npt.NDArray[np.float64]:
        return np.full(count, 1 - 2**-53)

    def gaussians(self, count: int) -> npt.NDArray[np.float64]:
        return np.zeros(count)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_training, "SecretRandomness", Known)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 4),
        networks.group_norm(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
    )


def pictures_of(lesions: list[int], seed: int = 0, scale: int = 256) -> Pictures:
    """As many pictures as it says for each lesion."""
    generator = torch.Generator().manual_seed(seed)
    names = tuple(f"L{at}" for at, count in enumerate(lesions) for _ in range(count))
    images = torch.randint(0, scale, (len(names), 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Pictures(images, tuple(int(name[1:]) % 7 for name in names), names)


def without(pictures: Pictures, lesion: str) -> Pictures:
    kept = [at for at, each in enumerate(pictures.lesions) if each != lesion]
    return Pictures(
        pictures.images[kept], tuple(pictures.labels[at] for at in kept), tuple(pictures.lesions[at] for at in kept)
    )


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in module.parameters()])


def step_sum(pictures: Pictures, local: LocalTraining = ONE_STEP, seed: int = 0) -> torch.Tensor:
    """The sum of clipped gradients that one step of `train` on all lesions, without noise, has gone by."""
    made = network(seed)
    before = flat(made)
    outcome = private_training.train(made, pictures, local, Privacy(noise=1.0, clip=CLIP), CPU)
    assert outcome.sampled is not None
    assert (outcome.sampled.rate, outcome.sampled.steps) == (1.0, 1)
    return (before - flat(made)) * outcome.lesions


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.usefixtures("known")
def test_a_lesion_moves_a_steps_sum_by_the_clip_at_most_however_many_pictures_it_has(count: int) -> None:
    pictures = pictures_of([1, count, 2, 1])
    moved = step_sum(pictures) - step_sum(without(pictures, "L1"))
    assert CLIP * 0.99 < moved.norm() <= CLIP * (1 + 1e-5)


@pytest.mark.usefixtures("known")
def test_the_same_pictures_as_lesions_of_their_own_move_it_further() -> None:
    pictures = pictures_of([1, 50, 1])
    apart = Pictures(pictures.images, pictures.labels, tuple(f"L{at}" for at in range(52)))
    alone = without(pictures, "L1")
    assert (step_sum(apart) - step_sum(alone)).norm() > 5 * CLIP


@pytest.mark.usefixtures("known")
def test_neighbours_go_by_the_same_gradients_but_for_the_lesions_own_also_when_augmented(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every picture's view is its own: were views drawn for a batch, one lesion more would change those of all others.
    monkeypatch.setattr(Known, "seed", lambda _self: 5, raising=False)
    pictures = pictures_of([1, 3, 1, 1, 1])
    augmented = ONE_STEP.model_copy(update={"augment": True})
    for lesion in ("L0", "L1", "L4"):
        moved = step_sum(pictures, augmented) - step_sum(without(pictures, lesion), augmented)
        assert moved.norm() <= CLIP * (1 + 1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.integers(1, 12))
def test_no_gradient_is_longer_than_the_clip_and_short_ones_stay(seed: int, scale: float, count: int) -> None:
    made = network(seed)
    parameters = list(made.parameters())
    optimizer = noised(made)
    torch.manual_seed(seed)
    gradients = [torch.randn(count, *parameter.shape) * scale for parameter in parameters]
    optimizer.accumulate(gradients)
    rows = torch.cat([each.flatten(1) for each in gradients], 1).double()
    wanted = (rows * (CLIP / rows.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)
    found = torch.cat([parameter.summed_grad.flatten() for parameter in parameters]).double()  # type: ignore[attr-defined]
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * CLIP)
    assert found.norm() <= CLIP * count * (1 + 1e-5)


def noised(made: nn.Module, expected: float = 1.0, noise: float = 1.0) -> Noised:
    optimizer = training.optimizer_of(list(made.parameters()), ONE_STEP)
    return Noised(optimizer, Privacy(noise=noise, clip=CLIP), expected, SecretRandomness())


def test_a_gradient_that_is_no_number_counts_as_nothing() -> None:
    made = network()
    optimizer = noised(made)
    good = [torch.ones(3, *parameter.shape) for parameter in made.parameters()]
    bad = [each.clone() for each in good]
    bad[0][1].view(-1)[0], bad[-1][2] = float("nan"), float("inf")
    optimizer.accumulate(bad)
    found = [parameter.summed_grad.clone() for parameter in made.parameters()]  # type: ignore[attr-defined]
    for parameter in made.parameters():
        parameter.summed_grad = None  # type: ignore[attr-defined]
    optimizer.accumulate([each[:1] for each in good])
    for one, parameter in zip(found, made.parameters(), strict=True):
        assert torch.equal(one, parameter.summed_grad)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- randomness


def test_two_trainings_of_one_task_differ_and_tasks_seeds_play_no_part() -> None:
    pictures, privacy = pictures_of([1, 2, 1, 3]), Privacy(noise=1.0, clip=CLIP)
    ends = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        made = network()
        private_training.train(made, pictures, ONE_STEP, privacy, CPU)
        ends.append(flat(made))
    assert (ends[0] - ends[1]).abs().min() > 0


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_noise_is_of_the_size_that_is_accounted_for(noise: float) -> None:
    made = nn.Sequential(nn.Flatten(), nn.Linear(768, 50))
    before = flat(made)
    optimizer = noised(made, expected=16.0, noise=noise)
    optimizer.step()  # no lesion was drawn, and the noise is there all the same
    moved = ((before - flat(made)) * 16 / (noise * CLIP)).numpy()
    assert len(moved) == 38_450
    assert stats.kstest(moved, "norm").pvalue > 1e-6
    assert moved.std() == pytest.approx(1, abs=0.02)


def test_random_numbers_are_of_their_distributions_and_of_no_two_alike() -> None:
    one, other = SecretRandomness(), SecretRandomness()
    numbers = one.gaussians(300_000)
    assert stats.kstest(numbers, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert stats.kstest(one.uniforms(100_000), "uniform").pvalue > 1e-6
    assert not np.array_equal(one.words(8), other.words(8))
    assert 0 <= one.seed() < 2**63


def test_a_lesion_is_drawn_as_often_as_another_and_its_pictures_alike() -> None:
    secret, rounds, rate = SecretRandomness(), 4000, 0.2
    lesions = [[0], [1, 2, 3, 4, 5], *([at] for at in range(6, 30))]
    counts = np.zeros(30)
    together = 0
    for _ in range(rounds):
        drawn = private_training.draw(lesions, rate, secret)
        assert len({min(at, 1) if at < 6 else at for at in drawn}) == len(drawn), "one picture a lesion"
        counts[drawn] += 1
        together += 0 in drawn and 6 in drawn
    each = np.array([counts[lesion].sum() for lesion in lesions])
    sure = stats.binom.interval(1 - 1e-7, rounds, rate)
    assert ((sure[0] <= each) & (each <= sure[1])).all()
    low, high = stats.binom.interval(1 - 1e-7, rounds, rate / 5)
    assert all(low <= counts[at] <= high for at in range(1, 6))
    assert stats.binomtest(together, rounds, rate**2).pvalue > 1e-7  # lesions by themselves, not so many a step


# -------------------------------------------------------------------------------------- gradients of single pictures


def alone(made: nn.Module, parameters: dict[str, nn.Parameter], image: torch.Tensor, label: int) -> list[torch.Tensor]:
    loss = nn.functional.cross_entropy(made(image[None]), torch.tensor([label]))
    return list(torch.autograd.grad(loss, list(parameters.values())))


def close_to(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).norm() <= 1e-6 * wanted.norm() + 1e-12)


def see_gradients(made: nn.Module, parameters: dict[str, nn.Parameter], side: int = 64) -> None:
    """In double precision: a picture's normalised groups are of a handful of numbers deep down, and near to nothing."""
    torch.manual_seed(3)
    made.double()
    images, labels = torch.randn(3, 3, side, side, dtype=torch.double), torch.tensor([0, 4, 6])
    found = Gradients(made, parameters)(images, labels)
    for at in range(3):
        wanted = alone(made, parameters, images[at], int(labels[at]))
        assert all(close_to(each[at], one) for each, one in zip(found, wanted, strict=True))


@pytest.mark.parametrize("architecture", [Architecture.RESNET18_GN, Architecture.MOBILENET_V2_GN])
def test_gradients_through_group_normalisation_are_those_of_single_pictures(architecture: Architecture) -> None:
    torch.manual_seed(0)
    made = networks.build(architecture)
    parameters = private_training._begin(made, Trained.ALL, adapter=False)
    assert parameters.keys() == dict(made.named_parameters()).keys()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    see_gradients(made, parameters)


@pytest.mark.parametrize("architecture", [Architecture.MOBILENET_V2, Architecture.RESNET18])
def test_gradients_of_the_last_layer_over_a_trunk_that_stays_are_those_of_single_pictures(
    architecture: Architecture,
) -> None:
    torch.manual_seed(0)
    made = networks.build(architecture)
    parameters = private_training._begin(made, Trained.HEAD, adapter=False)
    assert len(parameters) == 2
    see_gradients(made, parameters)


def adapter_over(folder: Path, architecture: Architecture) -> tuple[Path, Path]:
    torch.manual_seed(0)
    whole = networks.tensors(networks.build(architecture))
    trunk, file = folder / "trunk", folder / "adapter"
    digest = tensorfile.write(trunk, whole)
    specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in whole.items()}
    rng = np.random.default_rng(0)
    tensors = {
        name: whole[name] if name in whole else rng.normal(size=spec.shape).astype(np.float32) / 100
        for name, spec in layout(specs, "lora:2").items()
    }
    tensorfile.write(file, tensors, Adapter(digest, "lora:2").metadata())
    return file, trunk


def test_an_adapter_is_trained_over_batch_normalisation_that_stays(tmp_path: Path) -> None:
    file, trunk = adapter_over(tmp_path, Architecture.RESNET18)
    made = networks.load(Architecture.RESNET18, file, trunk=trunk)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    see_gradients(made, private_training._begin(made, Trained.ALL, adapter=True))
    made.float()
    local = ONE_STEP.model_copy(update={"learning_rate": 0.01})
    private_training.train(made, pictures_of([1, 2, 1]), local, Privacy(noise=1.0), CPU, adapter=True)
    after = made.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name or name.startswith("fc.")}


def test_opacus_hooks_come_to_the_same_sum_of_clipped_gradients() -> None:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    torch.manual_seed(2)
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    ours, theirs = network().eval(), network().train()
    theirs[3].eval()
    optimizer = noised(ours)
    optimizer.accumulate(Gradients(ours, dict(ours.named_parameters()))(images, labels))
    hooked = GradSampleModule(theirs, loss_reduction="sum")
    reference = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), 1.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks on inputs that need no gradient
        torch.autograd.backward(nn.functional.cross_entropy(hooked(images), labels, reduction="sum"))
    reference.clip_and_accumulate()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.summed_grad, other.summed_grad, rtol=1e-3, atol=1e-6)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- what trains


def test_a_network_with_batch_normalisation_is_not_trained_whole() -> None:
    with pytest.raises(Refused, match="group normalisation, an adapter, or the last layer alone"):
        private_training.train(
            networks.build(Architecture.RESNET18), pictures_of([1, 1]), ONE_STEP, Privacy(noise=1.0), CPU
        )


def test_the_last_layer_alone_moves_and_the_trunk_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    made = networks.build(Architecture.MOBILENET_V2)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    local = ONE_STEP.model_copy(update={"trained": Trained.HEAD, "optimizer": Optimizer.ADAMW})
    outcome = private_training.train(made, pictures_of([2, 1, 1]), local, Privacy(noise=1.0), CPU)
    after = made.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.1.weight",
        "classifier.1.bias",
    }
    assert (outcome.loss, outcome.accuracy, outcome.first_loss) == (None, None, None)
    assert (outcome.images, outcome.lesions) == (4, 3)


def test_nothing_is_done_where_it_is_not_allowed() -> None:
    asked: list[Sampled] = []

    def never(sampled: Sampled) -> None:
        asked.append(sampled)
        raise Refused("no")

    made = network()
    before = flat(made)
    with pytest.raises(Refused, match="no"):
        private_training.train(made, pictures_of([1, 2, 1]), ONE_STEP, Privacy(noise=2.0, clip=CLIP), CPU, never)
    assert asked == [Sampled(noise=2.0, clip=CLIP, rate=1.0, steps=1)]
    assert torch.equal(flat(made), before)


@pytest.mark.usefixtures("known")
def test_what_no_lesion_has_a_part_in_is_added_unclipped() -> None:
    pictures, made = pictures_of([1, 1]), network()
    plain = step_sum(pictures) / 2
    correction = {name: np.full(tuple(each.shape), 3.0, np.float32) for name, each in made.named_parameters()}
    before = flat(made)
    private_training.train(made, pictures, ONE_STEP, Privacy(noise=1.0, clip=CLIP), CPU, correction=correction)
    assert torch.allclose(before - flat(made), plain + 3.0, atol=1e-5)


def test_large_networks_gradients_come_in_parts_to_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network()
    parameters = dict(made.named_parameters())
    size = sum(4 * each.numel() for each in parameters.values())
    assert Gradients(made, parameters).parts(range(5)) == [range(5)]
    monkeypatch.setattr(private_training, "GRADIENT_BYTES", 2 * size + 1)
    parts: Callable[[range], list[range]] = Gradients(made, parameters).parts  # type: ignore[assignment]
    assert parts(range(5)) == [range(2), range(2, 4), range(4, 5)]
    assert parts(range(0)) == []

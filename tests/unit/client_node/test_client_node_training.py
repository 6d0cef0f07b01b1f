"""Networks, training and evaluation: exact files, exact sums, the same bits from the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from concilia_client_node import augmentation, evaluation, networks, objectives, trainer, training
from concilia_client_node.errors import Refused, Stopped, WeightsError
from concilia_client_node.pictures import Pictures
from concilia_kit.classification import LESIONS
from concilia_kit.lesions import CLASSES, MEAN, STD
from concilia_kit.wire.training import (
    SCORE_BINS,
    Architecture,
    Balance,
    EvaluationReport,
    LocalTraining,
    Optimizer,
    Statistics,
    Trained,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

CPU = torch.device("cpu")


def some_pictures(count: int = 20, size: int = 32, classes: int = 7) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Pictures(images, tuple(i % classes for i in range(count)), tuple(f"L{i // 2}" for i in range(count)))


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 7),
    )


def state_of(network: nn.Module) -> bytes:
    return safetensors.torch.save(network.state_dict())


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("architecture", [Architecture.RESNET18, Architecture.MOBILENET_V2])
def test_weights_survive_a_file_byte_for_byte(tmp_path: Path, architecture: Architecture) -> None:
    network = networks.build(architecture)
    first, second = tmp_path / "a", tmp_path / "b"
    networks.save(network, first)
    networks.save(networks.load(architecture, first), second)
    assert first.read_bytes() == second.read_bytes() == state_of(network)
    assert all(parameter.requires_grad for parameter in networks.load(architecture, first).parameters())


def edited(change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    state = dict(networks.build(Architecture.MOBILENET_V2).state_dict())
    change(state)
    return safetensors.torch.save(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("classifier.1.bias"), "lacks tensor classifier.1.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "the foreign tensor extra"),
        (lambda s: s.update({"classifier.1.bias": torch.zeros(8)}), "classifier.1.bias is float32 [8]"),
        (lambda s: s.update({"classifier.1.bias": torch.zeros(7, dtype=torch.float64)}), "is float64 [7]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    (tmp_path / "weights").write_bytes(edited(change))
    with pytest.raises(WeightsError) as caught:
        networks.load(Architecture.MOBILENET_V2, tmp_path / "weights")
    assert words in str(caught.value)


def test_bytes_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"\x80\x04 a pickle, perhaps")
    with pytest.raises(WeightsError, match="cannot be used"):
        networks.load(Architecture.RESNET18, tmp_path / "weights")


# -------------------------------------------------------------------------------------------------------- augmentation


def test_the_evaluation_input_is_torchvisions() -> None:
    pictures = some_pictures(3).images
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])(pictures)
    assert torch.allclose(augmentation.as_input(pictures), theirs, atol=1e-6)


def test_augmentation_is_mild_random_and_repeatable() -> None:
    pictures = torch.full((64, 3, 16, 16), 128, dtype=torch.uint8)
    pictures[:, :, :8] = 40  # an upper half unlike the lower one

    def augmented(seed: int) -> torch.Tensor:
        return augmentation.as_training_input(pictures, torch.Generator().manual_seed(seed))

    assert torch.equal(augmented(1), augmented(1))
    assert not torch.equal(augmented(1), augmented(2))
    level = augmented(1).mean((1, 2, 3))
    assert (level - augmentation.as_input(pictures).mean()).abs().max() < 1.0
    darker_side = (augmented(1)[:, :, :8].mean((1, 2, 3)) < augmented(1)[:, :, 8:].mean((1, 2, 3))).float().mean()
    assert 0.1 < darker_side < 0.9
    assert torch.equal(pictures[:, :, :8], torch.full((64, 3, 8, 16), 40, dtype=torch.uint8))


def test_colours_in_two_passes_are_those_of_each_step_by_itself() -> None:
    pictures, drawn = torch.rand(6, 3, 9, 9) * 255, torch.Generator().manual_seed(4)
    seen = augmentation._recoloured(pictures.clone(), torch.Generator().manual_seed(4), LESIONS)

    def uniform(shape: tuple[int, ...], around: float) -> torch.Tensor:
        return 1 + (2 * torch.rand(shape, generator=drawn) - 1) * around

    brightness = uniform((6, 1, 1, 1), augmentation.BRIGHTNESS)
    contrast = uniform((6, 1, 1, 1), augmentation.CONTRAST)
    tint = uniform((6, 3, 1, 1), augmentation.TINT)
    level = (pictures / 255).mean((1, 2, 3), keepdim=True)
    theirs = (((pictures / 255 - level) * contrast + level) * brightness * tint).clamp(0, 1)
    assert torch.equal(theirs.amax(), torch.tensor(1.0))  # clamping is seen
    assert torch.allclose(seen, v2.Normalize(MEAN, STD)(theirs), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("balance", list(Balance))
def test_training_is_the_same_to_the_last_bit_under_a_seed(balance: Balance) -> None:
    local = LocalTraining(epochs=2, batch_size=8, image_size=32, balance=balance, learning_rate=0.05)

    def trained(seed: int, noise: int = 0) -> tuple[trainer.Outcome, bytes]:
        network = small_network()
        torch.rand(noise)  # the caller's random stream must not matter
        return training.train(network, some_pictures(), local, seed, CPU), state_of(network)

    assert trained(1) == trained(1, noise=3)
    assert trained(1)[1] != trained(2)[1]
    assert trained(1)[1] != state_of(small_network())


def test_training_leaves_the_callers_random_stream_alone() -> None:
    network = small_network()
    before = torch.get_rng_state()
    training.train(network, some_pictures(), LocalTraining(), 1, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_mixed_from_every_part() -> None:
    seeds = {trainer.mix(seed, number, address) for seed in (0, 1) for number in (1, 2) for address in ("a", "b")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_proximal_gradient_is_the_terms_derivative() -> None:
    weights = [torch.tensor([1.0, -2.0, 0.5], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    anchors = [torch.tensor([0.5, 1.0, 0.5]), torch.tensor([[-1.0]])]
    inputs = [torch.tensor([2.0, 3.0, 4.0]), torch.tensor([[5.0]])]
    mu = 0.3
    loss = sum((w * x).sum() for w, x in zip(weights, inputs, strict=True))
    assert isinstance(loss, torch.Tensor)
    loss.backward(retain_graph=True)
    training.add_proximal_gradient(weights, anchors, mu)
    ours = [w.grad.clone() for w in weights if w.grad is not None]
    term = sum((mu / 2 * (w - a).pow(2)).sum() for w, a in zip(weights, anchors, strict=True))
    theirs = torch.autograd.grad(loss + term, weights)
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.allclose(ours[0], torch.tensor([2.0 + 0.15, 3.0 - 0.9, 4.0]))
    assert torch.allclose(ours[1], torch.tensor([[5.0 + 1.2]]))


def test_a_strong_proximal_term_holds_the_weights() -> None:
    def moved(mu: float) -> float:
        network, start = small_network(), small_network()
        local = LocalTraining(epochs=3, batch_size=8, learning_rate=0.05, image_size=32, proximal_mu=mu, momentum=0)
        training.train(network, some_pictures(), local, 1, CPU)
        pairs = zip(network.parameters(), start.parameters(), strict=True)
        return sum(float((a.detach() - b.detach()).pow(2).sum()) for a, b in pairs)

    assert moved(15.0) < 0.5 * moved(0.1) < moved(0.0)


def test_class_weights_follow_the_effective_number() -> None:
    labels = torch.tensor([0] * 1 + [4] * 2 + [5] * 300)
    weights = objectives.class_weights(labels, 7)
    raw = np.array([1.0, 0.01 / (1 - 0.99**2), 0.01 / (1 - 0.99**300)])
    assert torch.allclose(weights[[0, 4, 5]].double(), torch.from_numpy(raw * 3 / raw.sum()), atol=1e-6)
    assert weights[[1, 2, 3, 6]].eq(0).all()
    drawn = objectives.sampling_weights(labels, 7)
    assert [float(drawn[labels == label].sum()) for label in (0, 4, 5)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("images", "batch_size"), [(9, 4), (3, 2), (17, 16), (33, 16), (2, 1024)])
def test_no_batch_is_too_small_for_batch_normalisation(images: int, batch_size: int) -> None:
    sizes: list[int] = []
    network = small_network()
    network.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    local = LocalTraining(batch_size=batch_size, image_size=32)
    assert training.train(network, some_pictures(images), local, 0, CPU).images == images
    trained = sizes[: training.batches_of(images, batch_size)]
    assert sum(trained) == images
    assert sum(sizes) - images == min(images, training.STATISTICS_BATCHES * batch_size)  # once more, for statistics
    assert min(sizes) >= 2
    for some in (trained, sizes[len(trained) :]):
        assert max(some) - min(some) <= 1
    assert max(sizes) <= max(batch_size, 3)


def test_mixed_precision_keeps_weights_whole_and_learns_the_same_every_time() -> None:
    def trained(*, mixed: bool) -> tuple[bytes, list[torch.dtype]]:
        network, seen = small_network(), []
        network[0].register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
        local = LocalTraining(batch_size=10, image_size=32, learning_rate=0.1)
        training.train(network, some_pictures(), local, 0, CPU, mixed=mixed)
        assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
        return state_of(network), seen[:2]

    assert trained(mixed=True) == trained(mixed=True)
    assert trained(mixed=True)[1] == [torch.bfloat16] * 2
    assert trained(mixed=False)[1] == [torch.float32] * 2


def test_a_long_round_of_pictures_as_they_are_looks_at_none_twice() -> None:
    seen: list[int] = []
    network = small_network()
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    local = LocalTraining(batch_size=2, image_size=32, epochs=5, augment=False)
    pictures = some_pictures(2 * training.SETTLED_STEPS // 5)
    training.train(network, pictures, local, 0, CPU)
    assert len(seen) == training.SETTLED_STEPS
    # Augmented ones have other statistics than those that are answered: two batches more tell them.
    seen.clear()
    training.train(network, pictures, local.model_copy(update={"augment": True}), 0, CPU)
    assert len(seen) == training.SETTLED_STEPS + training.STATISTICS_BATCHES


def test_one_picture_is_refused() -> None:
    with pytest.raises(Refused, match="two training images"):
        training.train(small_network(), some_pictures(1), LocalTraining(), 0, CPU)


def test_batch_statistics_are_those_of_the_final_weights() -> None:
    pictures = some_pictures(32)
    network = small_network()
    training.train(network, pictures, LocalTraining(epochs=2, batch_size=32, image_size=32), 0, CPU)
    convolution, norm = network[0], network[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        seen = convolution(augmentation.as_input(pictures.images))
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4)  # type: ignore[arg-type]
    assert (norm.momentum, int(norm.num_batches_tracked)) == (0.1, 1)  # type: ignore[arg-type]


def test_the_cap_is_what_is_trained_on() -> None:
    outcome = training.train(small_network(), some_pictures(), LocalTraining(max_images=7, batch_size=4), 3, CPU)
    assert outcome.images == 7
    assert 4 <= outcome.lesions <= 7


def test_the_last_layer_alone_moves_where_it_is_to() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training.train(network, some_pictures(), LocalTraining(trained=Trained.HEAD, learning_rate=0.1), 1, CPU)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"6.weight", "6.bias"}


def test_kept_statistics_are_what_is_trained_by_and_stay_as_they_came() -> None:
    pictures, network = some_pictures(16), small_network()
    norm = network[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_mean.add_(0.3)  # type: ignore[union-attr]
    seen: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _layer, inputs, output: seen.extend((inputs[0].detach(), output.detach())))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    local = LocalTraining(batch_size=16, learning_rate=0.1, augment=False, statistics=Statistics.KEPT)
    training.train(network, pictures, local, 1, CPU)
    assert len(seen) == 2  # one batch, and no other look at the pictures
    expected = nn.functional.batch_norm(seen[0], before["1.running_mean"], before["1.running_var"], eps=norm.eps)
    assert torch.allclose(seen[1], expected, atol=1e-6)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"0.weight", "1.weight", "1.bias", "6.weight"} <= moved
    assert not {"1.running_mean", "1.running_var", "1.num_batches_tracked"} & moved


def test_adamw_is_torchs_with_the_jobs_rate_and_decay() -> None:
    local = LocalTraining(optimizer=Optimizer.ADAMW, learning_rate=0.01, weight_decay=0.1, augment=False, rate_end=1.0)
    pictures = some_pictures(16)
    local = local.model_copy(update={"batch_size": 16, "balance": Balance.NONE})
    network, theirs = nn.Sequential(nn.Flatten(), nn.Linear(3072, 7)), nn.Sequential(nn.Flatten(), nn.Linear(3072, 7))
    theirs.load_state_dict(network.state_dict())
    training.train(network, pictures, local, 1, CPU)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    nn.CrossEntropyLoss()(theirs(augmentation.as_input(pictures.images)), torch.tensor(pictures.labels)).backward()
    optimizer.step()
    for ours, other in zip(network.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours, other, atol=1e-6)


@given(start=st.floats(0.1, 1), end=st.floats(0, 0.1), warm=st.floats(0, 1), steps=st.integers(1, 500))
def test_the_rate_rises_then_falls_from_start_to_end(start: float, end: float, warm: float, steps: int) -> None:
    local = LocalTraining(rate_start=start, rate_end=end, warm_up=warm)
    shares = [training.share_of_rate(local, step, steps) for step in range(steps)]
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert min(shares) > 0
    assert max(shares) <= start
    if not warm:
        assert shares[0] == pytest.approx(start)
        assert training.share_of_rate(local, steps, steps) == pytest.approx(end)


def test_an_adjusted_loss_is_the_formulas() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    objective = objectives.Objective(LocalTraining(balance=Balance.LOGIT), labels, 3, CPU)
    logits = torch.tensor([[0.3, -0.2, 1.0], [2.0, 0.0, -1.0]])
    shares = torch.tensor([90, 10, 0.5]) / 100.5
    weighted = logits.exp() * shares
    wanted = -torch.log(weighted[range(2), [1, 0]] / weighted.sum(1)).mean()
    assert objective(logits, torch.tensor([1, 0])) == pytest.approx(wanted)


def test_a_class_that_a_hospital_never_sees_is_hardly_pushed_down() -> None:
    labels = torch.arange(6).repeat(50)
    pushed = []
    for balance in (Balance.NONE, Balance.LOGIT):
        logits = torch.zeros(len(labels), 7, requires_grad=True)
        objectives.Objective(LocalTraining(balance=balance), labels, 7, CPU)(logits, labels).backward()
        pushed.append(float(logits.grad[:, 6].sum()))
    assert pushed[0] > 0.1
    assert 0 < pushed[1] < pushed[0] / 50


def test_mixing_gives_the_loss_of_both() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 3])
    objective = objectives.Objective(LocalTraining(mixup=0.4, balance=Balance.NONE), labels, 4, CPU)
    inputs = torch.eye(4)
    mixed, others, own = objective.mix(inputs)
    assert others is not None
    assert 0 < own < 1
    assert torch.allclose(mixed, own * inputs + (1 - own) * inputs[others])
    soft = own * nn.functional.one_hot(labels, 4) + (1 - own) * nn.functional.one_hot(labels[others], 4)
    wanted = -(soft * mixed.log_softmax(1)).sum(1).mean()
    assert objective(mixed, labels, others, own) == pytest.approx(wanted)
    assert objectives.Objective(LocalTraining(), labels, 4, CPU).mix(inputs)[1] is None


def test_smoothing_is_torchs() -> None:
    labels, logits = torch.tensor([0, 1, 2]), torch.randn(3, 7)
    objective = objectives.Objective(LocalTraining(label_smoothing=0.1, balance=Balance.NONE), labels, 7, CPU)
    assert objective(logits, labels) == nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)


@pytest.mark.parametrize(
    "change", [{"mixup": 0.4}, {"label_smoothing": 0.1}, {"optimizer": Optimizer.ADAMW}, {"warm_up": 0.5}]
)
def test_each_recipe_is_the_same_to_the_last_bit_under_a_seed(change: dict[str, Any]) -> None:
    local = LocalTraining(epochs=2, batch_size=8, image_size=32, learning_rate=0.05)

    def trained(local: LocalTraining) -> bytes:
        network = small_network()
        training.train(network, some_pictures(), local, 1, CPU)
        return state_of(network)

    assert trained(local.model_copy(update=change)) == trained(local.model_copy(update=change)) != trained(local)


def test_divergence_is_told() -> None:
    with pytest.raises(Refused, match="diverged"):
        training.train(Exploding(), some_pictures(), LocalTraining(), 0, CPU)


class Exploding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 7)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.full((len(inputs), 1), float("inf")))
        return logits


def test_training_stops_when_told_and_reports_its_progress() -> None:
    told: list[float] = []

    def check() -> None:
        if told:
            raise Stopped("enough")

    training.train(small_network(), some_pictures(), LocalTraining(), 0, CPU, progress=told.append)
    assert told[-1] == 1.0
    with pytest.raises(Stopped):
        training.train(small_network(), some_pictures(), LocalTraining(), 0, CPU, check=check)


# ---------------------------------------------------------------------------------------------------------- evaluation


@given(st.integers(0, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_counts_equal_a_plain_recount(count: int, seed: int, sharp: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 200 if sharp else 1, (count, 7))
    scores = np.exp(logits - logits.max(1, keepdims=True)) if count else logits
    probabilities: npt.NDArray[np.float64] = scores / scores.sum(1, keepdims=True)
    labels = rng.integers(0, 7, count)
    confusion, positives, negatives = evaluation.count(probabilities, labels)
    wanted = np.zeros((7, 7), int)
    histograms = np.zeros((2, 7, SCORE_BINS), int)
    for row, label in zip(probabilities, labels, strict=True):
        wanted[label, int(np.argmax(row))] += 1
        for c, p in enumerate(row):
            histograms[0 if c == label else 1, c, min(SCORE_BINS - 1, int(p * SCORE_BINS))] += 1
    assert np.array_equal(confusion, wanted)
    assert np.array_equal(positives, histograms[0])
    assert np.array_equal(negatives, histograms[1])


@pytest.mark.parametrize(("count", "limit"), [(20, None), (20, 5), (0, None)])
def test_an_evaluation_makes_a_consistent_report(count: int, limit: int | None) -> None:
    pictures = some_pictures(count)
    network = small_network()
    counts = evaluation.evaluate(network, pictures, 8, limit, 0, CPU)
    report = EvaluationReport(
        job="0" * 64,
        round=0,
        model="1" * 64,
        **counts.__dict__,
        overlapping_lesions=0,
        skipped_images=0,
        seconds=0,
    )
    assert report.images == min(count, limit or count)
    if limit is None and count:
        with torch.inference_mode():
            logits = network.eval()(augmentation.as_input(pictures.images))
        wanted = nn.functional.cross_entropy(logits, torch.tensor(pictures.labels), reduction="sum")
        assert counts.loss_sum == pytest.approx(float(wanted), rel=1e-5)
        correct = sum(counts.confusion[c][c] for c in range(len(CLASSES)))
        assert correct == int((logits.argmax(1) == torch.tensor(pictures.labels)).sum())


def test_evaluation_changes_nothing() -> None:
    network = small_network()
    before = hashlib.sha256(state_of(network)).digest()
    evaluation.evaluate(network, some_pictures(), 8, None, 0, CPU)
    assert hashlib.sha256(state_of(network)).digest() == before

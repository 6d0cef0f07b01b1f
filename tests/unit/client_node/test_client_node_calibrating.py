"""What a hospital counts for calibration is of the pass that its report is of; flips; and how odd a picture is."""

from __future__ import annotations

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from concilia_client_node import evaluation
from concilia_client_node.augmentation import as_input
from concilia_client_node.pictures import Pictures
from concilia_kit import oddity
from concilia_kit.classification import LESIONS, Classification, Turns
from concilia_kit.wire.calibration import PLAIN
from concilia_kit.wire.training import EvaluationReport
from torch import nn
from torchvision.models import get_model

CPU = torch.device("cpu")
SIDE = 32
MEL = LESIONS.codes.index("mel")


def some_pictures(count: int = 60, classification: Classification = LESIONS) -> Pictures:
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, SIDE, SIDE), np.uint8))
    labels = tuple(int(label) for label in rng.integers(0, 7, count))
    lesions = tuple(f"{label}-{number // 14}" for number, label in enumerate(labels))
    return Pictures(images, labels, lesions, classification)


def network(name: str = "resnet18") -> nn.Module:
    """Random weights, and statistics of some pictures."""
    torch.manual_seed(5)
    made: nn.Module = get_model(name, weights=None, num_classes=7)
    with torch.no_grad():
        for _ in range(8):
            made.train()(as_input(some_pictures().images))
    return made.eval()


def evaluated(calibrate: bool = True, flips: bool = False, name: str = "resnet18", count: int = 60) -> EvaluationReport:
    counts = evaluation.evaluate(
        network(name), some_pictures(count), 16, None, 9, CPU, flips=flips, calibrate=calibrate
    )
    return EvaluationReport(
        job="0" * 64,
        round=0,
        model="1" * 64,
        **counts.__dict__,
        overlapping_lesions=0,
        skipped_images=0,
        seconds=0,
    )


@pytest.mark.parametrize("flips", [False, True])
def test_the_counts_are_of_the_pass_that_the_report_is_of(flips: bool) -> None:
    report = evaluated(flips=flips)
    assert report.calibration is not None
    halves = report.calibration.halves
    assert sum(half.losses[PLAIN] for half in halves) == pytest.approx(report.loss_sum, abs=1e-5)
    assert report.calibration.critical == sum(report.confusion[MEL])
    assert min(half.images for half in halves) >= 20
    assert report.model_copy(update={"calibration": None}) == evaluated(calibrate=False, flips=flips)


def test_few_pictures_are_evaluated_and_not_calibrated() -> None:
    report = evaluated(count=12)
    assert report.images == 12
    assert report.calibration is None


def test_a_network_without_batch_normalisation_says_nothing_of_oddity() -> None:
    report = evaluated(name="convnext_tiny", count=40)
    assert report.calibration is not None
    assert [half.oddity for half in report.calibration.halves] == [None, None]


# ------------------------------------------------------------------------------------------------------------- flips


@pytest.mark.parametrize(("turns", "views"), [(Turns.FREE, 4), (Turns.MIRROR, 2), (Turns.NONE, 1)])
def test_flips_are_the_mean_of_what_the_classification_allows(turns: Turns, views: int) -> None:
    pictures = some_pictures(20, LESIONS.model_copy(update={"turns": turns, "name": "other"}))
    net = network()
    with torch.inference_mode():
        inputs = as_input(pictures.images)
        sides = [inputs, inputs.flip(3), inputs.flip(2), torch.rot90(inputs, 2, (2, 3))][:views]
        wanted = sum(net(each).double() for each in sides) / views
    found = evaluation.logits(net, pictures, 20, CPU, flips=True)
    assert np.allclose(found, wanted, atol=1e-6)
    plain = evaluation.logits(net, pictures, 20, CPU)
    assert np.array_equal(found, plain) == (turns is Turns.NONE)


# ------------------------------------------------------------------------------------------------------------ oddity


def heard(net: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    with closing(oddity.Watch(net)) as watch, torch.inference_mode(), watch.listening() as distances:
        net(as_input(pictures))
    found: torch.Tensor = oddity.oddities(distances)
    return found


def test_oddity_is_the_divergence_of_two_normal_distributions() -> None:
    net = network()
    given = nn.functional.interpolate(some_pictures(5).images, scale_factor=3)  # no map is of one point alone then
    through: list[tuple[nn.BatchNorm2d, torch.Tensor]] = []
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda layer, inputs: through.append((layer, inputs[0].double())))
    found = heard(net, given)
    wanted = torch.zeros(5, dtype=torch.float64)
    for layer, activations in through:
        flat = activations.flatten(2)
        ours = torch.distributions.Normal(flat.mean(2), flat.std(2, correction=0))
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None
        assert variance is not None
        kept = torch.distributions.Normal(mean.double(), (variance.double() + layer.eps).sqrt())
        wanted += torch.distributions.kl_divergence(ours, kept).mean(1).log() / len(through)
    assert found.numpy() == pytest.approx(wanted.numpy(), abs=1e-5)


def test_pictures_of_another_kind_are_odder() -> None:
    net = network()
    usual = heard(net, some_pictures(40).images)
    flat = torch.arange(0, 240, 6, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous()
    assert float(heard(net, flat).min()) > float(usual.max())


def test_a_watch_leaves_the_network_as_it_was() -> None:
    net, pictures = network(), some_pictures(4)
    before = evaluation.logits(net, pictures, 4, CPU)
    heard(net, pictures.images)
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert np.array_equal(evaluation.logits(net, pictures, 4, CPU), before)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_each_thread_hears_of_its_own_pictures() -> None:
    net, pictures = network(), some_pictures(16).images
    alone = [heard(net, pictures[at : at + 1]) for at in range(16)]
    together: dict[int, torch.Tensor] = {}
    with closing(oddity.Watch(net)) as watch:
        begin = threading.Barrier(4)

        def work(first: int) -> None:
            begin.wait()
            for at in range(first, 16, 4):
                with torch.inference_mode(), watch.listening() as distances:
                    net(as_input(pictures[at : at + 1]))
                together[at] = oddity.oddities(distances)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(torch.cat([together[at] for at in range(16)]), torch.cat(alone))

"""Bases that an aggregator made for reading: they do read what a hospital trains them on, and a node refuses them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from concilia_client_node import networks
from concilia_kit.wire.training import Architecture, LocalTraining
from torch import nn

from benchmarks.privacy_attacks import payload, rebuilding, refusing
from benchmarks.privacy_attacks.membership import part
from benchmarks.privacy_attacks.passing import Backwards
from benchmarks.privacy_attacks.rebuilding import SIDE
from benchmarks.privacy_attacks.refusing import HIDDEN, IMPRINT, PASSING, Protection, Tampered
from tests.privacy.attacked import lesions

BATCH = 16
SEEDS = range(3)


@cache
def made(model: Tampered, seed: int) -> nn.Module:
    torch.set_num_threads(1)
    return model.make(rebuilding.real(lesions(40, SIDE, seed=1)), seed)


@cache
def backwards(model: Tampered) -> Backwards:
    return model.backwards(made(model, 0))


def mean(model: Tampered, protection: Protection) -> tuple[float, float]:
    some = part(lesions(BATCH, SIDE), np.arange(BATCH))
    some = some if model is IMPRINT else model.target(some)
    found = refusing.attack(model, made(model, 0), backwards(model), some, protection, 0).likeness
    return float(np.mean([each.psnr for each in found])), float(np.mean([each.ssim for each in found]))


@pytest.mark.parametrize("model", [IMPRINT, PASSING, HIDDEN], ids=lambda model: model.name)
def test_an_unprotected_update_of_such_a_base_is_read(model: Tampered) -> None:
    psnr, ssim = mean(model, Protection.NOTHING)
    assert psnr >= 20
    assert ssim >= 0.6


@pytest.mark.parametrize("model", [IMPRINT, PASSING], ids=lambda model: model.name)
def test_a_masked_one_is_not(model: Tampered) -> None:
    psnr, ssim = mean(model, Protection.WORDS)
    assert psnr <= 12
    assert ssim <= 0.2


def test_it_is_the_masks_that_protect_and_not_the_words() -> None:
    assert mean(IMPRINT, Protection.BARE)[0] >= 20


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_refuses_the_published_one_for_what_it_is(seed: int) -> None:
    enough = LocalTraining(epochs=10, batch_size=20)
    assert refusing.refused_by(made(IMPRINT, seed), enough, 200) == ["model"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("model", [PASSING, HIDDEN], ids=lambda model: model.name)
def test_a_node_with_floors_refuses_those_that_look_like_a_model_too(model: Tampered, seed: int) -> None:
    """Of many pictures of a class they read the sum, so they need batches that floors do not let through."""
    assert "floors" in refusing.refused_by(made(model, seed), payload.one_step(6, SIDE), 6)


@pytest.mark.parametrize("architecture", [Architecture.CONVNEXT_TINY, Architecture.MOBILENET_V2, Architecture.RESNET18])
def test_a_node_trains_an_honest_base_above_its_floors(architecture: Architecture) -> None:
    assert refusing.refused_by(networks.build(architecture), LocalTraining(epochs=1, batch_size=20), 200) == []

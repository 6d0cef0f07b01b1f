"""A base that the aggregator made for reading: ConvNeXt-Tiny whose layers hand a picture of 32 pixels through to the
last convolution, where the gradient is each picture times a vector that only its class decides.

It has the right names, shapes and types, and finite values: what is asked of a base by form, it gives. The published
attack attack with rows that sort pictures into bins is `imprinting`; this one has no two rows alike.

What passes: the picture's luminance in full and its colours at half the resolution, as JPEG has them. Read is one
picture of each class at most, of six of the seven classes: those of one class come out as their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from concilia_client_node import networks
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.wire.training import Architecture
from torch import Tensor, nn

from benchmarks.privacy_attacks.inversion import without_silent_blocks
from benchmarks.privacy_attacks.passing import SIDE, Backwards, Matrix, downsampling, put, rotation, state_of, stem

READ_FROM = "features.6.1.weight"
_LUMINANCE = (0.299, 0.587, 0.114)
_BLUE = (-0.1687, -0.3313, 0.5)
_RED = (0.5, -0.4187, -0.0813)
_PATCH = 24
"""Numbers of four by four pixels: 16 of luminance, 4 of each colour."""


def tampered(seed: int, *, hidden: bool = False, dither: float = 0.0, classes: int = 7) -> nn.Module:
    """The network. `hidden`: all channels turned by random rotations, so that no weight stands out as a 0 or a 1.
    `dither`: noise on everything, in multiples of what fresh weights have (0.02)."""
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.build(Architecture.CONVNEXT_TINY, classes)
    state = state_of(network)
    turns = [rotation(width, generator) if hidden else np.eye(width) for width in (96, 192, 384)]
    stem(state, _patches(), turns[0])
    downsampling(state, "features.2", turns[0], turns[1], np.eye(4 * _PATCH))
    downsampling(state, "features.4", turns[1], turns[2], _halved())
    for name in state:
        if name.endswith("layer_scale"):
            state[name][:] = 0.0 if not dither else 1e-6
    # The last layers are the same for every picture: what tells pictures apart in the gradient is their class alone.
    state[READ_FROM][:] = 0.0
    state["features.6.1.bias"] = generator.normal(0, 1, state["features.6.1.bias"].shape)
    for name, each in state.items():
        if dither and each.ndim == 4 and ".block." not in name:
            each += generator.normal(0, 0.02 * dither, each.shape)
    put(state, network)
    return network


def backwards(network: nn.Module, shown: Classification = LESIONS) -> Backwards:
    """From what comes to the last convolution to pictures; made once for all updates of a base."""
    return Backwards(without_silent_blocks(network).double().eval(), READ_FROM.removesuffix(".weight"), shown)


def read(
    network: nn.Module, back: Backwards, gradient: Mapping[str, Tensor], labels: Sequence[int], classes: int = 7
) -> Tensor:
    """Pictures (n, 3, 32, 32) in [0, 1] of as many different labels, by the network's own arithmetic: no search.

    Raises `ValueError` where two labels are the same or there is one of each class.
    """
    if len(set(labels)) < len(labels) or len(labels) >= classes:
        raise ValueError("one picture a class can be read, and not of all classes")
    network = without_silent_blocks(network).double().eval()
    columns = _signatures(network, labels)
    rows = np.linalg.lstsq(columns, gradient[READ_FROM].double().flatten(1).numpy(), rcond=None)[0]
    return back(rows)


def _signatures(network: nn.Module, labels: Sequence[int]) -> Matrix:
    """The last convolution's outputs' gradient (768, n) for a picture of each label, times its share of the batch."""
    found = []
    last = dict(network.named_modules())[READ_FROM.removesuffix(".weight")]
    for label in labels:
        network.zero_grad()
        nn.functional.cross_entropy(
            network(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)), torch.tensor([label])
        ).backward()  # type: ignore[no-untyped-call]
        bias = last.bias
        assert isinstance(bias, nn.Parameter), "a convolution with a bias"
        assert bias.grad is not None, "just made"
        found.append(bias.grad.numpy().copy() / len(labels))
    network.zero_grad()
    return np.stack(found, axis=1)


def _patches() -> Matrix:
    """Of four by four pixels all luminance, and each of two colours by two by two pixels."""
    kept = np.zeros((_PATCH, 3, 4, 4))
    for row in range(4):
        for column in range(4):
            kept[4 * row + column, :, row, column] = _LUMINANCE
            cell = 2 * (row // 2) + column // 2
            kept[16 + cell, :, row, column] = np.array(_BLUE) / 4
            kept[20 + cell, :, row, column] = np.array(_RED) / 4
    return kept.reshape(_PATCH, -1)


def _halved() -> Matrix:
    """384 numbers of four positions into the 382 that there is room for beside the constants: two pairs of neighbouring
    colours become one each."""
    every = np.eye(16 * _PATCH)
    for of in (16, 20):
        every[of] = (every[of] + every[of + 1]) / 2
    return np.delete(every, [17, 21], axis=0)

"""A base that sorts a batch's pictures into bins, so that the difference of two rows' gradients is one picture.

Fowl, Geiping, Czaja, Goldblum, Goldstein, "Robbing the Fed: Directly Obtaining Private Data in Federated Learning with
Modified Models" (ICLR 2022): rows of a linear layer all measure one thing, the picture's brightness, and each begins to
answer at another one. They put that layer in front; the platform's architectures have no place for it there, so here it
is the widest that ConvNeXt-Tiny has, in its last stage, to which the layers before hand a picture of 32 pixels on at
half its resolution. However large the batch is, what is alone in a bin is read, of whatever class.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from concilia_client_node import networks
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.wire.training import Architecture
from torch import Tensor, nn

from benchmarks.privacy_attacks.passing import SIDE, Backwards, Matrix, downsampling, put, seen_at, state_of, stem

BLOCK = "features.7.0"
READ_FROM = f"{BLOCK}.block.3.weight"
_MEASURED = f"{BLOCK}.block.3"
_HANDED_ON = f"{BLOCK}.block.0"
_CONSTANT = 50.0
"""How strong the constants are where pictures are read: what of them is rounded away grows with it."""
_STEEPNESS = 6.0
"""By how much a row's answer differs from its neighbour's: less, and GELU has no edges; more, and float32 has none."""
_WEIGHT = 0.5
_DEVIATIONS = 4.0
_HEARD = 0.02


def imprinted(own: Tensor, seed: int, shown: Classification = LESIONS) -> nn.Module:
    """The network. `own`: the attacker's pictures (n, 3, 32, 32) in [0, 1], which say how brightness is spread."""
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.build(Architecture.CONVNEXT_TINY, len(shown.classes))
    state = state_of(network)
    stem(state, _cells(), np.eye(96))
    downsampling(state, "features.2", np.eye(96), np.eye(192), np.eye(48))
    downsampling(state, "features.4", np.eye(192), np.eye(384), np.eye(192))
    downsampling(state, "features.6", np.eye(384), np.eye(768), _all_but_two(), _CONSTANT)
    for name in state:
        if name.endswith("layer_scale"):
            state[name][:] = 1.0 if name.startswith(BLOCK) else 0.0
    _block(state, np.zeros(3072), 1.0, np.zeros(768))
    _last(state, way := _way(generator), generator)
    put(state, network)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (shown.mean, shown.std))
    brightness = seen_at(network.eval(), _MEASURED, (own - mean) / std)[:, :-2].mean(1)
    reach = _DEVIATIONS * float(brightness.std())
    edges = np.linspace(brightness.mean() - reach, brightness.mean() + reach, 3072)
    width = float(edges[1] - edges[0])
    _block(state, edges, _STEEPNESS / width, way)
    put(state, network)
    return network


def backwards(network: nn.Module, shown: Classification = LESIONS) -> Backwards:
    """From what is handed on to the bins to pictures; made once for all updates of a base."""
    return Backwards(_without_blocks(network), _HANDED_ON, shown)


def read(back: Backwards, gradient: Mapping[str, Tensor], most: int) -> Tensor:
    """Pictures (m, 3, 32, 32) in [0, 1] of bins that hold something, at most so many; several may hold one picture, and
    some a mixture."""
    rows = gradient[READ_FROM].double().numpy() * _signs(3072)[:, None]
    bins = rows[:-1] - rows[1:]
    # The constants say by what weight a picture is in a bin, and by what its normalisation divided it.
    weight = (bins[:, -2] - bins[:, -1]) / (2 * _CONSTANT)
    heard = np.argsort(-np.abs(weight), kind="stable")[:most]
    heard = heard[np.abs(weight[heard]) > _HEARD * np.abs(weight).max()]
    bins, weight = bins[heard], weight[heard]
    middle = _CONSTANT - bins[:, -2] / weight
    handed_on = bins / weight[:, None] + middle[:, None]
    return back(handed_on)


def _without_blocks(network: nn.Module) -> nn.Module:
    copy = networks.build(Architecture.CONVNEXT_TINY, network.get_submodule("classifier.2").out_features)  # type: ignore[arg-type]
    copy.load_state_dict(network.state_dict())
    for name, block in list(copy.named_modules()):
        if type(block).__name__ == "CNBlock" and not name.startswith(BLOCK):
            parent, _, last = name.rpartition(".")
            setattr(copy.get_submodule(parent), last, nn.Identity())
    return copy.double().eval()


def _block(state: dict[str, Matrix], edges: Matrix, steepness: float, way: Matrix) -> None:
    center = np.zeros((768, 1, 7, 7))
    center[:, :, 3, 3] = 1.0
    state[f"{BLOCK}.block.0.weight"], state[f"{BLOCK}.block.0.bias"] = center, np.zeros(768)
    measure = np.full(768, 1 / 766)
    measure[-2:] = 0.0
    state[READ_FROM] = np.tile(steepness * measure, (3072, 1))
    state[f"{_MEASURED}.bias"] = -steepness * edges
    state[f"{BLOCK}.block.5.weight"] = np.outer(way, _WEIGHT * _signs(3072))
    state[f"{BLOCK}.block.5.bias"] = np.zeros(768)


def _last(state: dict[str, Matrix], way: Matrix, generator: np.random.Generator) -> None:
    """Classes differ in that direction above all in which the rows' answers go."""
    classes = len(state["classifier.2.bias"])
    state["classifier.2.weight"] = np.outer(np.where(np.arange(classes) % 2, 1.0, -1.0), way)
    state["classifier.2.weight"] += generator.normal(0, 0.02, (classes, 768))
    state["classifier.2.bias"] = generator.normal(0, 0.01, classes)


def _way(generator: np.random.Generator) -> Matrix:
    way = generator.normal(size=768)
    way -= way.mean()
    found: Matrix = way / np.linalg.norm(way)
    return found


def _signs(count: int) -> Matrix:
    """Rows' answers cancel each other by fours, evenly spaced as they are: what they add up to stays small however many
    answer."""
    return np.tile([1.0, -1.0, -1.0, 1.0], count // 4)


def _cells() -> Matrix:
    """Of four by four pixels the mean colour of each two by two."""
    kept = np.zeros((12, 3, 4, 4))
    for row in range(4):
        for column in range(4):
            for colour in range(3):
                kept[4 * colour + 2 * (row // 2) + column // 2, colour, row, column] = 0.25
    return kept.reshape(12, -1)


def _all_but_two() -> Matrix:
    """768 numbers into the 766 that there is room for: two pairs of blue neighbours become one each."""
    every = np.eye(768)
    for of in (8, 10):
        every[of] = (every[of] + every[of + 1]) / 2
    return np.delete(every, [9, 11], axis=0)


assert SIDE == 32, "the last stage has one position only"

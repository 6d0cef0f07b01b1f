"""ConvNeXt-Tiny's layers made to hand a picture on, number by number, to where a gradient tells it.

The stem and the downsamplings are convolutions whose windows do not overlap: channels take up what positions give up.
A pair of constant channels, many times as strong as the picture, makes layer normalisation before each of them a
mere factor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from concilia_kit.classification import Classification
from torch import Tensor, nn

SIDE = 32
STRONG = 1000.0
_PROBE = 0.5
_BATCH = 256
_SMALLEST = 1e-3
"""Of the largest singular value: what is below is rounding."""

Matrix = npt.NDArray[np.float64]


def state_of(network: nn.Module) -> dict[str, Matrix]:
    """A copy of its tensors, to work at."""
    return {name: each.double().numpy().copy() for name, each in network.state_dict().items()}


def put(state: dict[str, Matrix], network: nn.Module) -> None:
    """Have the network take them, as float32."""
    network.load_state_dict({name: torch.from_numpy(each).float() for name, each in state.items()})


def stem(state: dict[str, Matrix], kept: Matrix, turn: Matrix) -> None:
    """Of four by four pixels (3, 4, 4) the numbers `kept` (n, 48), and the constants; channels turned by `turn`."""
    weight = np.zeros((96, 3, 4, 4))
    weight[: len(kept)] = kept.reshape(-1, 3, 4, 4)
    constant = np.zeros(96)
    constant[-2:] = STRONG, -STRONG
    state["features.0.0.weight"] = np.einsum("ab,bcij->acij", turn, weight, optimize=True)
    state["features.0.0.bias"] = turn @ constant


def downsampling(
    state: dict[str, Matrix], name: str, before: Matrix, turn: Matrix, kept: Matrix, strong: float = STRONG
) -> None:
    """A downsampling: of two by two positions the channels in use side by side, `kept` of them, and the constants, so
    `strong`."""
    inputs, outputs = len(before), len(turn)
    used = kept.shape[1] // 4
    weight = np.zeros((outputs, inputs, 2, 2))
    for position in range(4):
        weight[: len(kept), :used, position // 2, position % 2] = kept[:, used * position : used * (position + 1)]
    weight[-2:] = 0.0
    # Constants come out of normalisation at this size, and are made strong again.
    strength = float(np.sqrt(inputs / 2))
    weight[-2, -2, 0, 0] = weight[-1, -1, 0, 0] = strong / strength
    weight[: len(kept)] *= STRONG / strength
    state[f"{name}.1.weight"] = np.einsum("ab,bcij,dc->adij", turn, weight, before, optimize=True)
    state[f"{name}.1.bias"] = np.zeros(outputs)


def rotation(width: int, generator: np.random.Generator) -> Matrix:
    """A random rotation that leaves the mean over channels alone, which normalisation takes away."""
    upright = np.linalg.qr(np.column_stack([np.ones(width), generator.normal(size=(width, width - 1))]))[0]
    inner = np.linalg.qr(generator.normal(size=(width - 1, width - 1)))[0]
    whole = np.eye(width)
    whole[1:, 1:] = inner
    found: Matrix = upright @ whole @ upright.T
    return found


def seen_at(network: nn.Module, layer: str, inputs: Tensor) -> Matrix:
    """What comes to a layer, flattened (n, numbers), of pictures as the network takes them."""
    seen: list[Tensor] = []
    module = dict(network.named_modules())[layer]
    hooked = module.register_forward_hook(lambda _module, given, _output: seen.append(given[0].flatten(1)))
    with torch.no_grad():
        for batch in torch.split(inputs, _BATCH):
            network(batch)
    hooked.remove()
    return torch.cat(seen).double().numpy()


class Backwards:
    """From what came to a layer back to pictures, by the network's own arithmetic where that is linear."""

    def __init__(self, network: nn.Module, layer: str, shown: Classification) -> None:
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (shown.mean, shown.std))
        size = 3 * SIDE * SIDE
        probes = torch.full((1 + size, size), 0.5, dtype=torch.float64)
        probes[1:] += _PROBE * torch.eye(size, dtype=torch.float64)
        seen = seen_at(network, layer, (probes.view(-1, 3, SIDE, SIDE) - mean) / std)
        linear = (seen[1:] - seen[0]).T / _PROBE
        values, vectors = np.linalg.eigh(linear @ linear.T)
        sound = values > _SMALLEST**2 * values[-1]
        vectors, values = vectors[:, sound], values[sound]
        self._offset, self._back = seen[0], (vectors / values) @ (vectors.T @ linear)

    def __call__(self, rows: Matrix) -> Tensor:
        """Pictures (n, 3, 32, 32) in [0, 1], the least striking ones of those that agree."""
        found = 0.5 + (rows - self._offset) @ self._back
        return torch.from_numpy(found).float().view(-1, 3, SIDE, SIDE).clamp(0, 1)

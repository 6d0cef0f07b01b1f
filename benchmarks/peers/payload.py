"""What every contender moves: the 161 parameter tensors of torchvision's ResNet50, 102.2 MB of float32, seeded.

NumPy alone: this file runs in every contender's environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCKS = (3, 4, 6, 3)
STEP = np.float32(2**-10)
"""What an "update" adds to each value, so that a round's result can be checked."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, in the order of the network. Source: He et al. (2016), as in torchvision."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)} | _norm("bn1", 64)
    width_in = 64
    for layer, count in enumerate(BLOCKS, start=1):
        width = 32 * 2**layer
        for block in range(count):
            name = f"layer{layer}.{block}"
            for at, (wide, narrow, side) in enumerate(
                ((width, width_in, 1), (width, width, 3), (4 * width, width, 1)), 1
            ):
                found[f"{name}.conv{at}.weight"] = (wide, narrow, side, side)
                found |= _norm(f"{name}.bn{at}", wide)
            if block == 0:
                found[f"{name}.downsample.0.weight"] = (4 * width, width_in, 1, 1)
                found |= _norm(f"{name}.downsample.1", 4 * width)
            width_in = 4 * width
    return found | {"fc.weight": (1000, width_in), "fc.bias": (1000,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def tensors(*, empty: bool = False) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The tensors one by one; `empty`: a single one of 16 values, for a round with no model to speak of."""
    random = np.random.default_rng(0)
    wanted = {"weight": (16,)} if empty else shapes()
    for name, shape in wanted.items():
        values = random.standard_normal(math.prod(shape), np.float32) * np.float32(0.05)
        yield name, values.reshape(shape)

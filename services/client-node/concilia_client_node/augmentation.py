"""Batches of pictures as a network takes them, on whatever device they lie.

Each picture of a batch gets its own random numbers, and geometry is one resampling: flips, right angles, a small
rotation and a mild crop are one matrix a picture, so that training is not held up by its input.
"""

from __future__ import annotations

import math

import torch
from concilia_kit.classification import LESIONS, Classification, Turns
from torch import Tensor
from torch.nn import functional

SMALL_ANGLE = math.radians(15)
SCALE = (0.8, 1.05)  # side of the part that is seen, relative to the picture's
SHIFT = 0.08  # of half a side
BRIGHTNESS = 0.12
CONTRAST = 0.15
TINT = 0.04


def as_input(pictures: Tensor, classification: Classification = LESIONS) -> Tensor:
    """uint8 RGB (n, 3, s, s) to normalised float32: [0, 1], then per channel (x - mean) / std of the classification."""
    return _normalise(pictures.float().div_(255), classification)


def as_training_input(pictures: Tensor, generator: torch.Generator, classification: Classification = LESIONS) -> Tensor:
    """Like `as_input`, after mild changes of colour and such random geometry as the classification's pictures bear
    (`Turns`). Random numbers come from the CPU."""
    seen = pictures.float()
    matrices = _matrices(len(seen), generator, classification.turns)
    grid = functional.affine_grid(matrices.to(seen.device), list(seen.shape), False)
    seen = functional.grid_sample(seen, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _recoloured(seen, generator, classification)


def _normalise(pictures: Tensor, classification: Classification) -> Tensor:
    mean = torch.tensor(classification.mean, device=pictures.device).view(1, 3, 1, 1)
    std = torch.tensor(classification.std, device=pictures.device).view(1, 3, 1, 1)
    return pictures.sub_(mean).div_(std)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _matrices(count: int, generator: torch.Generator, turns: Turns) -> Tensor:
    """Affine matrices (count, 2, 3) from output to input coordinates in [-1, 1]: what `turns` has of the dihedral
    group, and a bit."""
    # The same numbers are drawn whatever is made of them.
    quarter = torch.randint(4, (count,), generator=generator) * (math.pi / 2)
    if turns is not Turns.FREE:
        quarter = torch.zeros(count)
    angle = quarter + _uniform((count,), -SMALL_ANGLE, SMALL_ANGLE, generator)
    scale = _uniform((count,), *SCALE, generator)
    mirror = torch.randint(2, (count,), generator=generator) * 2.0 - 1.0
    if turns is Turns.NONE:
        mirror = torch.ones(count)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = _uniform((count, 2), -SHIFT, SHIFT, generator)
    return torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)], 1
    )


def _recoloured(pictures: Tensor, generator: torch.Generator, classification: Classification) -> Tensor:
    """Pictures in [0, 255] with other contrast about their own level, brightness and tint, clamped and normalised.

    All of it but the clamping is one factor and one summand a picture and channel: three passes over the pictures and
    not nine.
    """
    shape, device = (len(pictures), 1, 1, 1), pictures.device
    brightness = _uniform(shape, 1 - BRIGHTNESS, 1 + BRIGHTNESS, generator)
    contrast = _uniform(shape, 1 - CONTRAST, 1 + CONTRAST, generator).to(device)
    tint = _uniform((len(pictures), 3, 1, 1), 1 - TINT, 1 + TINT, generator)
    mean, std = (
        torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (classification.mean, classification.std)
    )
    light = (brightness * tint).to(device) / (255 * std)
    level = pictures.mean((1, 2, 3), keepdim=True)
    factor, summand = contrast * light, level * (1 - contrast) * light - mean / std
    pictures = pictures.mul_(factor).add_(summand)
    return torch.clamp(pictures, (0 - mean) / std, (1 - mean) / std, out=pictures)

"""How like a rebuilt picture is to the real one, and sheets of both side by side.

SSIM is torchmetrics' (Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment", IEEE TIP 2004: windows of 11 pixels,
Gaussian of 1.5). Both numbers need something to be compared with: a picture of one colour, which took no attack at all,
has 14 to 17 dB of a lesion on skin and an SSIM of a half (`of_a_guess`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

_EXACT = 150.0
"""dB of a picture to itself, where the formula has infinity."""
_ENLARGED = 4
_GAP = 6
_TITLE = 14


@dataclass(frozen=True)
class Likeness:
    """Of one rebuilt picture to the real one: peak signal to noise ratio in dB, and structural similarity."""

    psnr: float
    ssim: float


def psnr(one: Tensor, other: Tensor) -> float:
    """Of two pictures of one shape in [0, 1], in dB."""
    return min(_EXACT, float(-10 * torch.log10((one - other).square().mean())))


def ssim(one: Tensor, other: Tensor) -> float:
    """Of two pictures (3, s, s) in [0, 1]."""
    found = structural_similarity_index_measure(one[None], other[None], data_range=1.0)
    assert isinstance(found, Tensor), "no maps were asked for"
    return float(found)


def matched(rebuilt: Tensor, real: Tensor) -> Tensor:
    """Of `rebuilt` (m, 3, s, s), one at least, one for each of `real` (n, 3, s, s) such that the sum of PSNR is the
    largest: updates tell no order. Where there are fewer, some stand for several."""
    rebuilt = rebuilt.repeat(-(-len(real) // len(rebuilt)), 1, 1, 1) if len(rebuilt) < len(real) else rebuilt
    table = np.array([[psnr(each, other) for each in rebuilt] for other in real])
    _, columns = linear_sum_assignment(table, maximize=True)
    return rebuilt[torch.from_numpy(columns)]


def compare(rebuilt: Tensor, real: Tensor) -> list[Likeness]:
    """Of pictures one by one, in order."""
    return [Likeness(psnr(one, other), ssim(one, other)) for one, other in zip(rebuilt, real, strict=True)]


def of_a_guess(others: Tensor, real: Tensor) -> list[Likeness]:
    """What whoever has seen no update would get, by the mean of `others`, pictures of other patients."""
    return compare(others.mean(0, keepdim=True).expand_as(real), real)


def summed(some: Sequence[Likeness]) -> dict[str, Any]:
    """Means and the best of pictures' likeness."""
    return {
        "PSNR dB": round(float(np.mean([each.psnr for each in some])), 1),
        "best": round(max(each.psnr for each in some), 1),
        "SSIM": round(float(np.mean([each.ssim for each in some])), 3),
        "best SSIM": round(max(each.ssim for each in some), 3),
    }


def sheet(rows: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Write a PNG of rows of pictures (n, 3, s, s) in [0, 1], each under its title, enlarged without smoothing. Raises
    `OSError`."""
    side = max(pictures.shape[-1] for _, pictures in rows) * _ENLARGED
    most = max(len(pictures) for _, pictures in rows)
    whole = Image.new("RGB", (_GAP + most * (side + _GAP), _GAP + len(rows) * (side + _TITLE + _GAP)), (255, 255, 255))
    pen = ImageDraw.Draw(whole)
    for row, (title, pictures) in enumerate(rows):
        top = _GAP + row * (side + _TITLE + _GAP)
        pen.text((_GAP, top), title, fill=(0, 0, 0))
        for column, picture in enumerate(pictures):
            pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            shown = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            whole.paste(shown, (_GAP + column * (side + _GAP), top + _TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path)

"""What the tests of attacks share: drawn lesions, decoded once."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from concilia_client_node import drawn
from concilia_client_node.pictures import Pictures
from concilia_kit.lesions import CLASSES
from PIL import Image


@cache
def lesions(count: int, side: int, seed: int = 0) -> Pictures:
    """So many drawn lesions, one picture each, classes in turns."""
    images = []
    for number in range(count):
        lesion, view = (np.random.default_rng([seed, of, number]) for of in (1, 2))
        picture = Image.fromarray(drawn.draw(CLASSES[number % len(CLASSES)], lesion, view))
        images.append(np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1))
    return Pictures(
        torch.from_numpy(np.stack(images)),
        tuple(number % len(CLASSES) for number in range(count)),
        tuple(f"lesion {number}" for number in range(count)),
    )

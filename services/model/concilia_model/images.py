"""From a picture's bytes to a model's input; pure.

The whole picture is scaled to a square, as evaluation during training does it: what a model sees here must be what it
was measured on.
"""

from __future__ import annotations

import io

import torch
from concilia_kit.classification import LESIONS, Classification
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from concilia_model.errors import ImageTooLarge, ImageUnreadable

MAX_SIDE = 65_535
"""JPEG's own; each row costs a decoder more than its pixels, and a PNG may claim 2^31 of them."""


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """A JPEG or PNG as an upright RGB picture. The size is taken from the header, before anything is decoded.

    Raises `ImageTooLarge` and `ImageUnreadable`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > max_pixels or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError
            # Each form of a large picture is many megabytes: there are two at a time at most.
            ImageOps.exif_transpose(image, in_place=True)
            # A palette's transparency has to be resolved before the alpha channel can be dropped.
            if "transparency" not in image.info:
                return image.convert("RGB")
            resolved = image.convert("RGBA")
            image.close()
            return resolved.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow has a bound of its own
        raise ImageTooLarge(f"a picture may have {max_pixels} pixels at most; send a smaller one") from error
    except Exception as error:  # Pillow's decoders raise half a dozen kinds for broken bytes
        raise ImageUnreadable("the file cannot be read as a JPEG or PNG picture") from error


def prepare(image: Image.Image, side: int, classification: Classification = LESIONS) -> torch.Tensor:
    """An RGB picture as a float32 batch of one, shape (1, 3, side, side), normalised as the classification has it."""
    scaled = functional.resize(image, [side, side], antialias=True)  # by Pillow, as training scales
    # Divided, not multiplied by the reciprocal as torchvision's ToDtype does: equal to training to the last bit.
    batch = functional.pil_to_tensor(scaled).unsqueeze(0).float().div_(255)
    normalised: torch.Tensor = functional.normalize(batch, list(classification.mean), list(classification.std))
    return normalised

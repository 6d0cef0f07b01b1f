"""A picture that a clinician sends, decoded and made a network's input as the model service does it."""

from __future__ import annotations

import random

from concilia_model import errors, images

from tests.fuzz import structure

DECLARED = (errors.ImageTooLarge, errors.ImageUnreadable)
MAX_PIXELS = 2**20
GROWTH = 128 * 2**20
"""MAX_PIXELS in three forms of four bytes a pixel (as decoded, upright, as RGB), what a decoder and an EXIF block need,
and the allocator's own."""


def run(data: bytes) -> None:
    """Decode, and prepare."""
    image = images.decode(data, MAX_PIXELS)
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS
    batch = images.prepare(image, 32)
    assert tuple(batch.shape) == (1, 3, 32, 32)
    assert bool(batch.isfinite().all())


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change a chunk or a segment, checksum and length right."""
    return structure.changed_picture(data, source)

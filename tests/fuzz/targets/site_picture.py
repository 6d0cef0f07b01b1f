"""A picture in a hospital's folder, decoded as client-node does before it trains: one that is broken is counted."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from concilia_client_node import pictures

from tests.fuzz import structure

DECLARED = (pictures.PictureUnreadable,)
GROWTH = 8 * pictures.MAX_PIXELS + 128 * 2**20
"""The largest picture there may be in two forms of four bytes a pixel, and what a decoder needs."""
_folder = tempfile.TemporaryDirectory(prefix="fuzz-pictures-")
_PATH = Path(_folder.name) / "picture.jpg"
SIDE = 32


def run(data: bytes) -> None:
    """Decode."""
    _PATH.write_bytes(data)
    decoded = pictures.decode(_PATH, SIDE)
    assert decoded.shape == (3, SIDE, SIDE)
    assert decoded.dtype == "uint8"


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change a chunk or a segment, checksum and length right."""
    return structure.changed_picture(data, source)

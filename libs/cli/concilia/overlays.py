"""Where a network looked, drawn over the picture it looked at.

Colours and opacity are those of the diagnosis page: five points of viridis (van der Walt and Smith, CC0), which keeps
its order in grey and for colour-blind eyes; what drew no attention stays as it is in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps, PngImagePlugin

MOST_PIXELS = 50_000_000
_STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_OPAQUE = 0.7  # at the strongest: the lesion is seen through it
_LEVELS = 256


class PictureUnreadable(Exception):
    """The file cannot be drawn on; the message says why."""


def colour(value: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a value from 0 to 1."""
    at = value * (len(_STOPS) - 1)
    low = min(int(at), len(_STOPS) - 2)
    red, green, blue = (
        round(start + (end - start) * (at - low)) for start, end in zip(_STOPS[low], _STOPS[low + 1], strict=True)
    )
    return red, green, blue


def opacity(value: float) -> float:
    """How much of a value's colour is laid over the picture, 0 to 1."""
    return _OPAQUE * value * value * (3 - 2 * value)


def laid_over(picture: Image.Image, grid: Sequence[Sequence[float]]) -> Image.Image:
    """An upright picture with a map over it. `grid`: rows from the top over the whole picture, values from 0 to 1."""
    coarse = Image.new("L", (len(grid[0]), len(grid)))
    coarse.putdata([round(value * (_LEVELS - 1)) for row in grid for value in row])
    values = coarse.resize(picture.size, Image.Resampling.BILINEAR)
    levels = [level / (_LEVELS - 1) for level in range(_LEVELS)]
    channels = [values.point([colour(level)[channel] for level in levels]) for channel in range(3)]
    mask = values.point([round(opacity(level) * 255) for level in levels])
    return Image.composite(Image.merge("RGB", channels), picture, mask)


def save(source: Path, grid: Sequence[Sequence[float]], target: Path, told: dict[str, str]) -> None:
    """Write the picture in a file with a map over it as a PNG, which has nothing of the source's metadata but `told`.

    Raises `PictureUnreadable` and `OSError`.
    """
    try:
        with Image.open(source, formats=("JPEG", "PNG")) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise PictureUnreadable(f"more than {MOST_PIXELS} pixels")
            upright = ImageOps.exif_transpose(opened)
            # A palette's transparency has to be resolved before the alpha channel can be dropped.
            picture = (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow's decoders raise
        raise PictureUnreadable(str(error)) from error
    text = PngImagePlugin.PngInfo()
    for name, value in told.items():
        text.add_text(name, value)
    target.parent.mkdir(parents=True, exist_ok=True)
    laid_over(picture, grid).save(target, "PNG", pnginfo=text)

"""Decoded pictures of a site at one size: read once, then only copied.

The whole site lies in one uint8 array on a file without a name in the node's own directory: the kernel keeps it in
memory while there is room and writes it out where there is not, and it vanishes with the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from concilia_kit.classification import LESIONS, Classification
from PIL import Image, ImageOps

from concilia_client_node import archive
from concilia_client_node.dataset import Picture, Site
from concilia_client_node.errors import DatasetError

MAX_PIXELS = 64 * 2**20  # a picture that claims more is not decoded
MAX_SIDE = 65_535  # JPEG's own; each row costs a decoder more than its pixels, and a PNG may claim 2^31 of them


class PictureUnreadable(ValueError):
    """Bytes that cannot be read as a JPEG or PNG picture, or claim too many pixels."""


@dataclass(frozen=True)
class Pictures:
    """Pictures that could be decoded: uint8 RGB of shape (n, 3, size, size), their classes and lesions, and what they
    are told apart as."""

    images: torch.Tensor
    labels: tuple[int, ...]
    lesions: tuple[str, ...]
    classification: Classification = LESIONS

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DecodedSite:
    """Both sides of a site at one size; `broken` pictures could not be decoded and are in neither."""

    size: int
    training: Pictures
    held_out: Pictures
    broken: tuple[Picture, ...]

    def overlapping_lesions(self) -> int:
        """Lesions on both sides, counted from the lists that are used."""
        return len(set(self.training.lesions) & set(self.held_out.lesions))


def decode(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """One picture, whole, scaled to (3, size, size) with antialiasing (torchvision's `Resize((size, size))`).

    Raises `PictureUnreadable` whatever is wrong with it, a file that is not there included.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS or max(picture.size) > MAX_SIDE:
                raise PictureUnreadable("too many pixels")
            # Each form of a large picture is some 250 MB: there are two at a time at most.
            ImageOps.exif_transpose(picture, in_place=True)
            whole: Image.Image = picture
            # A palette's transparency has to be resolved before the alpha channel can be dropped.
            if "transparency" in picture.info:
                whole = picture.convert("RGBA")
                picture.close()
            whole = whole.convert("RGB")
    except MemoryError:  # the machine's fault, and not the picture's
        raise
    except Exception as error:  # Pillow raises half a dozen kinds for broken bytes, IndexError among them
        raise PictureUnreadable("not readable as a JPEG or PNG picture") from error
    return _scaled(whole, size)


def _scaled(picture: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """An RGB picture as (3, size, size)."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def decode_site(
    site: Site, size: int, directory: Path, threads: int, check: Callable[[], None] = lambda: None
) -> DecodedSite:
    """Decode all pictures of a site. `check` is called between pictures and may raise to stop.

    Raises `OSError` where the directory has no room: 3 * size**2 bytes a picture are set aside before the first.
    """
    wanted = [*site.training, *site.held_out]
    array = _array(directory, len(wanted), size)
    good = [False] * len(wanted)

    def work(position: int) -> None:
        check()
        path = wanted[position].path
        try:
            assert path is not None
            array[position] = decode(path, size)
        except PictureUnreadable:
            return
        good[position] = True

    with ThreadPoolExecutor(threads) as pool:
        try:
            list(pool.map(work, (at for at, picture in enumerate(wanted) if picture.place is None)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for (path, name), rows in _places(wanted).items():
        # A fault is known at an array's end at the latest, and spares none of its pictures.
        if _unpack(path, name, rows, array, check):
            for position in rows.values():
                good[position] = True
    sides = range(len(site.training)), range(len(site.training), len(wanted))
    training, held_out = (_side(array, good, wanted, positions, site.classification) for positions in sides)
    broken = tuple(picture for picture, fine in zip(wanted, good, strict=True) if not fine)
    return DecodedSite(size, training, held_out, broken)


def _places(wanted: Sequence[Picture]) -> dict[tuple[Path, str], dict[int, int]]:
    """For each array of an archive, which of its rows go where."""
    found: dict[tuple[Path, str], dict[int, int]] = {}
    for position, picture in enumerate(wanted):
        if picture.place is not None and picture.path is not None:
            name, row = picture.place
            found.setdefault((picture.path, name), {})[row] = position
    return found


def _unpack(
    path: Path, name: str, rows: Mapping[int, int], array: npt.NDArray[np.uint8], check: Callable[[], None]
) -> bool:
    """Put rows of an archive's array into their places; whether the whole array could be read."""
    try:
        for row, pixels in enumerate(archive.rows(path, name)):
            if (position := rows.get(row)) is not None:
                check()
                array[position] = _scaled(Image.fromarray(pixels).convert("RGB"), array.shape[-1])
    except DatasetError:
        return False
    return True


def _side(
    array: npt.NDArray[np.uint8],
    good: Sequence[bool],
    wanted: Sequence[Picture],
    positions: range,
    classification: Classification,
) -> Pictures:
    kept = [position for position in positions if good[position]]
    part = array[positions.start : positions.stop]
    if len(kept) < len(positions):
        part = part[[position - positions.start for position in kept]]
    return Pictures(
        torch.from_numpy(part),
        tuple(wanted[position].label for position in kept),
        tuple(wanted[position].lesion for position in kept),
        classification,
    )


def _array(directory: Path, count: int, size: int) -> npt.NDArray[np.uint8]:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        # Set aside now: a full disk is an error here, and a bus error when a mapped page has no place later.
        os.posix_fallocate(file.fileno(), 0, count * 3 * size * size)
        return np.memmap(file, np.uint8, mode="r+", shape=(count, 3, size, size))

"""Pictures of any classification from a seed, in MedMNIST's layout, for machines without data. They are no patient's.

A class is a disc with rings: how many, and whether its middle is bright, say which. That is enough for a network to
learn them apart, whatever the classes are called; nothing learnt on them says anything about a disease.
`python -m concilia_client_node.drawn FOLDER --classification FILE` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from concilia_kit.classification import Classification
from PIL import Image

from concilia_client_node.archive import SIDES, SUFFIX
from concilia_client_node.dataset import DRAWN_MARK
from concilia_client_node.errors import DatasetError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
FEWEST_A_CLASS = 10  # so that each part has one of each
NOISE = 0.05

Array = npt.NDArray[np.float64]


def draw(label: int, side: int, rng: np.random.Generator, *, colour: bool) -> npt.NDArray[np.uint8]:
    """One picture of a class, by its number: uint8 (side, side), or (side, side, 3) in colour."""
    rings, bright = label // 2, label % 2 == 0
    rows, columns = (np.mgrid[0:side, 0:side] + 0.5) / side - 0.5
    y, x = rng.normal(0, 0.05, 2)
    distance = np.hypot(rows - y, columns - x) / rng.uniform(0.32, 0.42)
    inside = np.clip((1 - distance) * 6, 0, 1)
    waves = np.cos(np.pi * (2 * rings + 1) * np.clip(distance, 0, 1) ** (1 if rings else 2))
    picture = rng.uniform(0.4, 0.5) + 0.08 * _clouds(rng, side)
    picture = picture + inside * waves * rng.uniform(0.25, 0.35) * (1 if bright else -1)
    if colour:
        tint = np.array([1.0, 0.85, 0.75]) * rng.uniform(0.9, 1.1, 3)
        picture = picture[..., None] * tint
    picture = picture + rng.normal(0, NOISE, picture.shape)
    pixels: npt.NDArray[np.uint8] = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return pixels


def arrays(
    classification: Classification, images: int, seed: int, side: int = 28, *, colour: bool = False
) -> Mapping[str, npt.NDArray[np.uint8]]:
    """The arrays of a set of so many pictures, by MedMNIST's names; classes come equally often. Raises
    `DatasetError`."""
    classes = len(classification.classes)
    if images < FEWEST_A_CLASS * classes:
        raise DatasetError(f"at least {FEWEST_A_CLASS * classes} images are needed for some of each class in each part")
    if side not in SIDES:
        raise DatasetError(f"MedMNIST has no pictures of {side} pixels; write one of {sorted(SIDES)}")
    made: dict[str, npt.NDArray[np.uint8]] = {}
    for part, (name, share) in enumerate(SHARES.items()):
        rng = np.random.default_rng([seed, part])
        labels = rng.permutation(np.arange(round(images * share)) % classes)
        made[f"{name}_images"] = np.stack([draw(int(label), side, rng, colour=colour) for label in labels])
        made[f"{name}_labels"] = labels.astype(np.uint8)[:, None]
    return made


def write(
    folder: Path, classification: Classification, images: int, seed: int, side: int = 28, *, colour: bool = False
) -> None:
    """Write such a set into a folder that is there. Equal arguments give equal bytes. Raises as `arrays`, `OSError`."""
    made = arrays(classification, images, seed, side, colour=colour)
    np.savez_compressed(folder / f"drawn{SUFFIX}", allow_pickle=False, **made)
    counts = np.bincount(np.concatenate([made[f"{name}_labels"][:, 0] for name in SHARES]))
    (folder / DRAWN_MARK).write_text(
        f"Drawn by concilia_client_node.drawn, {sum(counts)} images, seed {seed}: no photograph and no patient's.\n"
        + "".join(f"{code} {count}\n" for code, count in zip(classification.codes, counts, strict=True))
    )


def _clouds(rng: np.random.Generator, side: int) -> Array:
    """Smooth noise, about in [-1, 1]."""
    coarse = rng.uniform(-1, 1, (5, 5)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.float64)

"""Lesion-like pictures from a seed, in HAM10000's own layout, for machines without data. They are no patient's.

Each class has its habit of colour, outline and structure, loosely after the dermoscopic signs of the real ones, so that
a network can learn to tell them apart; nothing learnt on them says anything about skin.
`python -m concilia_client_node.drawn FOLDER --images 800 --seed 0` needs NumPy and Pillow only. With `--classification
FILE` it draws the classes that are declared there instead (see `drawn_arrays`).
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from concilia_kit.classification import Layout
from concilia_kit.lesions import CLASSES
from PIL import Image

from concilia_client_node import drawn_arrays, layouts
from concilia_client_node.dataset import DRAWN_MARK, TABLES
from concilia_client_node.errors import DatasetError

WIDTH, HEIGHT = 200, 150
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
IMAGES_PER_LESION = 1.34  # HAM10000's own ratio
SECOND, THIRD = 0.26, 0.04  # chances of another picture of the same lesion

# Shares of the classes, in CLASSES order: four hospitals as unlike each other as HAM10000's collections.
COLLECTIONS: dict[str, tuple[float, ...]] = {
    "drawn_east": (0.02, 0.10, 0.16, 0.05, 0.20, 0.42, 0.05),
    "drawn_north": (0.00, 0.03, 0.12, 0.08, 0.05, 0.62, 0.10),
    "drawn_south": (0.24, 0.20, 0.22, 0.05, 0.12, 0.14, 0.03),
    "drawn_west": (0.05, 0.12, 0.10, 0.14, 0.25, 0.22, 0.12),
}
MINIMUM = 2 * len(CLASSES)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Habit:
    """How a class looks: colours in RGB [0, 1] (its middle, its spots), outline, and how much of each structure."""

    colour: tuple[float, float, float]
    spots: tuple[float, float, float]
    raggedness: float
    softness: float
    asymmetry: float
    spottiness: float
    centre: float  # how far the middle is drawn towards the colour of the spots


HABITS: dict[str, Habit] = {
    "akiec": Habit((0.78, 0.46, 0.42), (0.92, 0.80, 0.72), 0.14, 0.30, 0.3, 0.55, 0.0),
    "bcc": Habit((0.82, 0.58, 0.60), (0.35, 0.36, 0.48), 0.10, 0.22, 0.3, 0.35, 0.0),
    "bkl": Habit((0.62, 0.47, 0.30), (0.85, 0.74, 0.52), 0.12, 0.05, 0.2, 0.40, 0.0),
    "df": Habit((0.66, 0.44, 0.36), (0.93, 0.84, 0.80), 0.04, 0.32, 0.1, 0.00, 0.9),
    "mel": Habit((0.25, 0.16, 0.14), (0.38, 0.40, 0.52), 0.26, 0.06, 0.8, 0.50, 0.0),
    "nv": Habit((0.50, 0.31, 0.21), (0.36, 0.21, 0.14), 0.04, 0.14, 0.1, 0.25, 0.3),
    "vasc": Habit((0.62, 0.12, 0.20), (0.36, 0.06, 0.22), 0.06, 0.08, 0.2, 0.45, 0.0),
}

_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
_VIGNETTE = (_X / WIDTH - 0.5) ** 2 + (_Y / HEIGHT - 0.5) ** 2
_ANGLES = np.linspace(-np.pi, np.pi, 1441, dtype=np.float32)


def draw(code: str, lesion: np.random.Generator, view: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One picture, uint8 (150, 200, 3): `lesion` decides what is seen, `view` how it was photographed."""
    habit = HABITS[code]
    skin = _colour((0.87, 0.69, 0.59), lesion.normal(0, 0.035) + lesion.normal(0, 0.012, 3))
    picture = skin + (0.05 * _clouds(lesion, 9) + 0.02 * _clouds(lesion, 60))[..., None]
    inside, depth = _blob(habit, lesion, view)
    jitter = lesion.normal(0, 0.035) + lesion.normal(0, 0.02, 3)
    body, spots = _colour(habit.colour, jitter), _colour(habit.spots, jitter)
    mixture = habit.centre * np.clip(2.2 * depth - 0.9, 0, 1)
    if habit.spottiness:
        mixture = np.maximum(mixture, np.clip(3 * (_clouds(lesion, 14) + habit.spottiness - 0.75), 0, 1))
    slope = float(np.cos(lesion.uniform(0, 2 * np.pi))) * (_X / WIDTH - 0.5) + (_Y / HEIGHT - 0.5)
    shade = 0.03 * _clouds(lesion, 40) + 0.25 * habit.asymmetry * slope
    picture += inside[..., None] * (body + mixture[..., None] * (spots - body) + shade[..., None] - picture)
    light = np.float32(view.normal(1, 0.05)) * (1 - np.float32(view.uniform(0, 0.25)) * _VIGNETTE)
    picture *= light[..., None] * view.normal(1, 0.015, 3).astype(np.float32)
    picture += np.float32(0.012) * view.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def write_drawn(folder: Path, images: int = 800, seed: int = 0) -> None:
    """Draw about `images` pictures into a new folder, all or nothing. Raises `DatasetError` and `OSError`."""
    if images < 2 * MINIMUM:
        raise DatasetError(f"at least {2 * MINIMUM} images are needed for two lesions of every class")
    with new_folder(folder) as partial:
        _write(partial, images, seed)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that gets its name at the end, if that comes. Raises `DatasetError` and `OSError`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} exists and is not empty; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield partial
        partial.chmod(0o755)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def plan(images: int, seed: int) -> list[tuple[str, str]]:
    """Class and collection of each lesion, such that about `images` pictures come of them."""
    rng = np.random.default_rng([seed, 0])
    lesions = max(MINIMUM, round(images / IMAGES_PER_LESION))
    names = list(COLLECTIONS)
    drawn = [(CLASSES[i % len(CLASSES)], names[(i // len(CLASSES)) % 2 + 2]) for i in range(MINIMUM)]
    for position in range(lesions - MINIMUM):
        name = names[position % len(names)]
        drawn.append((str(rng.choice(CLASSES, p=COLLECTIONS[name])), name))
    return drawn


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="concilia_client_node.drawn", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--images", type=int, default=800, help="about how many pictures (default 800)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds draw equal pictures (default 0)")
    parser.add_argument("--classification", type=Path, help="file that declares other classes, in MedMNIST's layout")
    parser.add_argument("--side", type=int, default=28, help="of such pictures: 28, 64, 128 or 224 pixels (default 28)")
    parser.add_argument("--colour", action="store_true", help="such pictures in colour; they are grey by default")
    given = parser.parse_args(arguments)
    try:
        if given.classification is None:
            write_drawn(given.folder, given.images, given.seed)
        else:
            declaration = layouts.declared(given.classification)
            if declaration.layout is not Layout.MEDMNIST:
                raise DatasetError(f"declared classes are drawn in the layout medmnist, and not {declaration.layout}")
            with new_folder(given.folder) as partial:
                chosen = given.images, given.seed, given.side
                drawn_arrays.write(partial, declaration.classification, *chosen, colour=given.colour)
    except (DatasetError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _write(folder: Path, images: int, seed: int) -> None:
    for part in PARTS:
        (folder / part).mkdir()
    rows: list[tuple[str, ...]] = []
    for number, (code, collection) in enumerate(plan(images, seed)):
        lesion_id = f"DRAWN_L{number:06d}"
        for view in range(_views(seed, number)):
            image_id = f"DRAWN_{len(rows):07d}"
            pixels = draw(
                code, np.random.default_rng([seed, 1, number]), np.random.default_rng([seed, 2, number, view])
            )
            part = PARTS[len(rows) >= images // 2]
            Image.fromarray(pixels).save(folder / part / f"{image_id}.jpg", quality=90)
            rows.append((lesion_id, image_id, code, "drawn", "", "unknown", "unknown", collection))
    with (folder / TABLES[1]).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    counts = Counter(row[2] for row in rows)
    (folder / DRAWN_MARK).write_text(
        f"Drawn by concilia_client_node.drawn, {len(rows)} images, seed {seed}: no photograph and no patient's.\n"
        + "".join(f"{code} {counts[code]}\n" for code in CLASSES)
    )


def _views(seed: int, number: int) -> int:
    chance = np.random.default_rng([seed, 3, number]).random()
    return 3 if chance < THIRD else 2 if chance < THIRD + SECOND else 1


def _colour(middle: tuple[float, float, float], change: npt.NDArray[np.float64]) -> Array:
    return (np.asarray(middle) + change).astype(np.float32)


def _clouds(rng: np.random.Generator, cells: int) -> Array:
    """Smooth noise, about in [-1, 1], with `cells` cells across the width."""
    coarse = rng.uniform(-1, 1, (max(2, cells * HEIGHT // WIDTH), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _blob(habit: Habit, lesion: np.random.Generator, view: np.random.Generator) -> tuple[Array, Array]:
    """Where the lesion is (0 to 1, soft at its border), and how deep inside (0 at the border, 1 in the middle)."""
    radius = np.float32(lesion.uniform(32, 52) * view.uniform(0.9, 1.1))
    stretch = np.float32(lesion.uniform(1.0, 1.2 + 0.4 * habit.asymmetry))
    turn = view.uniform(0, 2 * np.pi)
    x, y = _X - np.float32(WIDTH / 2 + view.normal(0, 6)), _Y - np.float32(HEIGHT / 2 + view.normal(0, 5))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    along, across = cos * x + sin * y, cos * y - sin * x
    outline = np.ones_like(_ANGLES)
    for wave in range(2, 9):
        height, phase = lesion.normal(0, 1.2 / wave**0.7), lesion.uniform(0, 2 * np.pi)
        outline += np.float32(habit.raggedness * height) * np.cos(wave * _ANGLES + np.float32(phase))
    outline = radius * np.clip(outline, 0.35, 1.9)
    nearest = np.rint((np.arctan2(across, along) + np.pi) * ((len(_ANGLES) - 1) / (2 * np.pi))).astype(np.intp)
    distance = np.sqrt((along / stretch) ** 2 + (across * stretch) ** 2) / outline[nearest]
    return np.clip((1 - distance) / habit.softness + 0.5, 0, 1), np.clip(1 - distance, 0, 1)


if __name__ == "__main__":
    sys.exit(main())

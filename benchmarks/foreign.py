"""Pictures that are none of dermoscopy, or no more: drawn from a seed, or made of lesions' pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from concilia_client_node import drawn
from concilia_kit.lesions import CLASSES
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 200, 150
PATCHES = 4
"""A side, of which a scrambled picture is laid anew."""
_WORDS = ["patient", "referral", "histology", "report", "forearm", "excision", "margins", "clear", "clinic", "date"]
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH]

Random = np.random.Generator
Picture = npt.NDArray[np.uint8]


def kinds(lesions: Picture, each: int, seed: int, photographs: Path | None = None) -> dict[str, Picture]:
    """`each` pictures of every kind, uint8 (each, 3, s, s), in the size of `lesions` (n, 3, s, s), of which some kinds
    are made."""
    side, rng = lesions.shape[-1], np.random.default_rng(seed)
    drawing: dict[str, Callable[[Random, int], Picture]] = {
        "one colour": _flat,
        "skin without a lesion, drawn": _skin,
        "noise": _noise,
        "gradients": _gradient,
        "text": _text,
        "diagrams": _diagram,
        "drawn lesions": _lesion,
    }
    if photographs is not None:
        taken = [Image.open(path).convert("RGB") for path in sorted(photographs.glob("*.jpg"))]
        drawing["photographs"] = lambda rng, number: _part(taken[number % len(taken)], rng)
    found = {
        name: np.stack([_scaled(draw(rng, number), side) for number in range(each)]) for name, draw in drawing.items()
    }
    some = [lesions[position] for position in rng.choice(len(lesions), each, replace=len(lesions) < each)]
    found["scrambled lesions"] = np.stack([_scrambled(picture, rng) for picture in some])
    found["grey lesions"] = np.stack([_grey(picture) for picture in some])
    found["lesions in negative"] = np.stack([255 - picture for picture in some])
    return found


def _scaled(picture: Picture, side: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _flat(rng: Random, number: int) -> Picture:
    return np.full((HEIGHT, WIDTH, 3), rng.integers(0, 256, 3), np.uint8)


def _skin(rng: Random, number: int) -> Picture:
    colour = np.array([220, 170, 150]) + rng.normal(0, 15, 3)
    return np.clip(colour + rng.normal(0, 3, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8)


def _noise(rng: Random, number: int) -> Picture:
    cell = (1, 2, 4, 8)[number % 4]
    cells = rng.integers(0, 256, (HEIGHT // cell + 1, WIDTH // cell + 1, 3), dtype=np.uint8)
    return np.kron(cells, np.ones((cell, cell, 1), np.uint8))[:HEIGHT, :WIDTH]


def _gradient(rng: Random, number: int) -> Picture:
    one, other = rng.integers(0, 256, (2, 3))
    if number % 2:
        angle = rng.uniform(0, 2 * np.pi)
        height = np.cos(angle) * (_X / WIDTH - 0.5) + np.sin(angle) * (_Y / HEIGHT - 0.5)
    else:
        height = np.hypot(_X / WIDTH - rng.uniform(0.3, 0.7), _Y / HEIGHT - rng.uniform(0.3, 0.7))
    share = (height - height.min()) / np.ptp(height)
    made: Picture = (one + share[..., None] * (other - one)).astype(np.uint8)
    return made


def _text(rng: Random, number: int) -> Picture:
    picture = Image.new("RGB", (WIDTH, HEIGHT), _colour(rng, 220, 256))
    pen, size, ink = ImageDraw.Draw(picture), int(rng.integers(8, 16)), _colour(rng, 0, 80)
    for line in range(4, HEIGHT - 8, int(size * 1.3)):
        pen.text((5, line), " ".join(rng.choice(_WORDS, 6)), fill=ink, font=ImageFont.load_default(size=size))
    return np.asarray(picture)


def _diagram(rng: Random, number: int) -> Picture:
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    pen.line([(15, 5), (15, HEIGHT - 15), (WIDTH - 5, HEIGHT - 15)], fill="black", width=2)
    heights = [int(height) for height in rng.integers(10, HEIGHT - 20, 40)]
    for bar in range(8) if number % 3 == 0 else ():
        pen.rectangle([20 + bar * 22, heights[bar], 36 + bar * 22, HEIGHT - 16], fill=_colour(rng, 0, 256))
    for line in range(3) if number % 3 == 1 else ():
        places = [(20 + at * 18, heights[line * 10 + at]) for at in range(10)]
        pen.line(places, fill=_colour(rng, 0, 256), width=2)
    for height in heights if number % 3 == 2 else ():
        left = int(rng.integers(20, WIDTH - 10))
        pen.ellipse([left, height, left + 5, height + 5], fill=_colour(rng, 0, 256))
    return np.asarray(picture)


def _lesion(rng: Random, number: int) -> Picture:
    code = CLASSES[number % len(CLASSES)]
    return drawn.draw(code, np.random.default_rng([5, number]), np.random.default_rng([6, number]))


def _part(picture: Image.Image, rng: Random) -> Picture:
    width = int(rng.uniform(0.25, 1) * min(picture.width, picture.height * WIDTH / HEIGHT))
    height = min(picture.height, width * HEIGHT // WIDTH)
    left, top = (int(rng.integers(0, room + 1)) for room in (picture.width - width, picture.height - height))
    return np.asarray(picture.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT)))


def _scrambled(picture: Picture, rng: Random) -> Picture:
    side = picture.shape[-1] // PATCHES * PATCHES
    patches = picture[:, :side, :side].reshape(3, PATCHES, side // PATCHES, PATCHES, side // PATCHES)
    laid = patches.transpose(1, 3, 0, 2, 4).reshape(PATCHES**2, 3, side // PATCHES, side // PATCHES)
    laid = laid[rng.permutation(PATCHES**2)].reshape(PATCHES, PATCHES, 3, side // PATCHES, side // PATCHES)
    result = picture.copy()
    result[:, :side, :side] = laid.transpose(2, 0, 3, 1, 4).reshape(3, side, side)
    return result


def _grey(picture: Picture) -> Picture:
    return np.repeat(np.asarray(Image.fromarray(picture.transpose(1, 2, 0)).convert("L"))[None], 3, axis=0)


def _colour(rng: Random, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue

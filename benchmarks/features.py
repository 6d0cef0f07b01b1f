"""What a frozen trunk makes of every picture of a data folder, computed once and kept: federations of its head alone
then take seconds where those of whole networks take hours.

The trunk is MobileNetV2 up to its pooling: 1,280 numbers a picture, and as many of the picture with the backdoor's
pattern. They are kept in the form of pictures, whose normalisation they survive (`as_pictures`), so that the nodes'
training and evaluation take them as they are.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from concilia_client_node import augmentation, networks, pictures
from concilia_client_node.dataset import Folder, Picture
from concilia_kit.lesions import MEAN, STD
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.training import Architecture
from torch import nn

from benchmarks import attacks

WIDTH = 1280
PADDED = -(-WIDTH // 3) * 3
"""Features of a picture of one row of three colours: one more than there are, which is 0."""
_BATCH = 32
_SETTLING = 128
DROPPED = 0.5
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Features of pictures by the picture's id, and of the same pictures with the pattern: float32, (n, 3, 1, w)."""

    positions: dict[str, int]
    plain: Array
    stamped: Array

    def of(self, some: Sequence[Picture], *, stamped: bool = False) -> torch.Tensor:
        """In the order of pictures that are all there: (n, 3, 1, w)."""
        rows = [self.positions[picture.image] for picture in some]
        return torch.from_numpy(np.ascontiguousarray((self.stamped if stamped else self.plain)[rows]))


def cached(folder: Folder, weights: Path | None, size: int, cache: Path, threads: int) -> Features:
    """All pictures' features, from the cache where they are there. Pictures that cannot be read are left out.

    `weights`: a safetensors file of the trunk; without it the trunk is random, by a fixed seed. Raises `OSError`.
    """
    readable = [picture for picture in folder.pictures if picture.path is not None]
    name = hashlib.sha256(
        "|".join(
            [str(size), attacks.PATTERN, _digest(weights), *(f"{each.image}:{_size(each)}" for each in readable)]
        ).encode()
    ).hexdigest()[:16]
    path = cache / f"{name}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        trunk = _trunk(weights)
        if weights is None:
            _settle(trunk, readable, size)
        images, plain, stamped = _compute(readable, trunk, size, threads)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images=images, plain=plain, stamped=stamped)
        partial.replace(path)
    with np.load(path, allow_pickle=False) as kept:
        positions = {str(image): row for row, image in enumerate(kept["images"])}
        return Features(positions, as_pictures(kept["plain"]), as_pictures(kept["stamped"]))


def as_pictures(features: npt.NDArray[np.floating]) -> Array:
    """Features (n, w) as pictures of one row (n, 3, 1, w / 3) which the nodes' normalisation (x / 255 - MEAN) / STD of
    each colour turns into these features again, but for rounding."""
    padded = np.zeros((len(features), PADDED), np.float64)
    padded[:, : features.shape[1]] = features
    colours = padded.reshape(len(features), 3, 1, PADDED // 3)
    mean, std = (np.asarray(each, np.float64).reshape(1, 3, 1, 1) for each in (MEAN, STD))
    return ((colours * std + mean) * 255).astype(np.float32)


def head(kind: str, classes: int, seed: int) -> nn.Module:
    """What is trained on features, with fresh weights: `linear`, one layer; `batch:N` and `layer:N`, a hidden one of N
    units with batch normalisation or layer normalisation, and a linear one. Raises `ValueError`."""
    name, _, units = kind.partition(":")
    hidden = int(units or 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(PADDED, classes))
        # Of two dimensions, as those are which the nodes take for batch normalisation.
        batch = [nn.Unflatten(1, (hidden, 1, 1)), nn.BatchNorm2d(hidden), nn.Flatten()]
        norms: dict[str, list[nn.Module]] = {"batch": [*batch], "layer": [nn.LayerNorm(hidden)]}
        if name not in norms or not hidden:
            raise ValueError(f"'{kind}' is no head; there are linear, batch:64 and layer:64")
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(PADDED, hidden),
            *norms[name],
            nn.ReLU(),
            nn.Dropout(DROPPED),
            nn.Linear(hidden, classes),
        )


def _trunk(weights: Path | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.build(Architecture.MOBILENET_V2)
    if weights is not None:
        file = TensorFile.open(weights)
        state = {name: torch.from_numpy(np.array(file.tensor(name))) for name in file if name.startswith("features.")}
        missing = network.load_state_dict(state, strict=False).missing_keys
        if any(name.startswith("features.") for name in missing):
            raise OSError(f"{weights.name} lacks {len(missing)} tensors of the trunk")
    trunk = nn.Sequential(network.get_submodule("features"), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return trunk.eval().to(memory_format=torch.channels_last)


def _settle(trunk: nn.Module, some: Sequence[Picture], size: int) -> None:
    """Give a random trunk's batch normalisation the statistics of some pictures, without which nothing comes through
    its layers."""
    pixels = [found for each in some[:_SETTLING] if (found := _decoded(each, size)) is not None]
    trunk.train()
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean over batches
    with torch.no_grad():
        trunk(augmentation.as_input(torch.from_numpy(np.stack(pixels))))
    trunk.eval()


def _compute(some: Sequence[Picture], trunk: nn.Module, size: int, threads: int) -> tuple[list[str], Array, Array]:
    torch.set_num_threads(1)  # batches are side by side, and do not wait for each other within an operation
    images: list[str] = []
    parts: tuple[list[Array], list[Array]] = ([], [])
    began = time.monotonic()

    def work(start: int) -> tuple[list[str], list[Array]]:
        torch.set_num_threads(1)  # OpenMP keeps it by thread
        found = [
            (each.image, pixels)
            for each in some[start : start + _BATCH]
            if (pixels := _decoded(each, size)) is not None
        ]
        if not found:
            return [], [np.zeros((0, WIDTH), np.float32)] * 2
        pixels = np.stack([each for _, each in found])
        with torch.inference_mode():
            inputs = [augmentation.as_input(torch.from_numpy(shown)) for shown in (pixels, attacks.stamp(pixels))]
            made = [trunk(each.contiguous(memory_format=torch.channels_last)).numpy() for each in inputs]
        return [image for image, _ in found], made

    with ThreadPoolExecutor(threads) as pool:
        for batch, (names, made) in enumerate(pool.map(work, range(0, len(some), _BATCH)), start=1):
            images += names
            for part, each in zip(parts, made, strict=True):
                part.append(each)
            done = min(batch * _BATCH, len(some))
            left = (time.monotonic() - began) / done * (len(some) - done)
            if batch % 8 == 0 or done == len(some):
                print(f"  features of {done} of {len(some)} pictures, {left:.0f} s left", file=sys.stderr, flush=True)
    return images, np.concatenate(parts[0]), np.concatenate(parts[1])


def _decoded(picture: Picture, size: int) -> npt.NDArray[np.uint8] | None:
    try:
        assert picture.path is not None
        return pictures.decode(picture.path, size)
    except pictures.PictureUnreadable:
        return None


def _size(picture: Picture) -> int:
    assert picture.path is not None, "looked at"
    return picture.path.stat().st_size


def _digest(weights: Path | None) -> str:
    return "random, statistics of the pictures" if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()

"""Hospitals of a data folder for the simulator, by collection, IID or Dirichlet shares, with features or pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from concilia_client_node import check, dataset, drawn, networks, pictures
from concilia_client_node.dataset import Folder, Picture, Site
from concilia_client_node.errors import DatasetError
from concilia_client_node.pictures import Pictures
from concilia_client_node.training import last_layer
from concilia_kit import tensorfile
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.training import Architecture
from concilia_model import pretrained
from concilia_model.errors import WeightsUnavailable
from concilia_model.releases import Releases
from torch import nn

from benchmarks import attacks, features
from benchmarks.simulation import Hospital

DRAWN_IMAGES = 2000
SPLITS = ("collections", "dirichlet:0.1:10", "dirichlet:0.3:10", "dirichlet:1:10", "iid:10")


@dataclass(frozen=True)
class Level:
    """What is trained: the head on a frozen trunk's features of `size` pixels by a `head` (`features.head`),
    or for `whole` MobileNetV2 from end to end. `weights`: of its trunk; random without. `data` None: drawn lesions.
    `images`: most of a site and round."""

    data: Path | None
    weights: Path | None
    whole: bool
    size: int
    head: str
    cache: Path
    images: int | None = None
    arch: Architecture = Architecture.MOBILENET_V2

    @property
    def name(self) -> str:
        """As it stands in results."""
        kind = self.arch.value if self.whole and self.arch is not Architecture.MOBILENET_V2 else "whole"
        kind = kind if self.whole else self.head
        kind += f", {self.images} pictures a site and round" if self.images else ""
        return f"{kind}, {'ImageNet' if self.weights else 'random'} trunk, {self.size} px"


@contextmanager
def folder_of(data: Path | None) -> Iterator[Path]:
    """The folder that was named, else one with drawn lesions that is gone afterwards."""
    if data is not None:
        yield data
        return
    with tempfile.TemporaryDirectory() as scratch:
        drawn.write_drawn(Path(scratch) / "lesions", DRAWN_IMAGES, 0)
        yield Path(scratch) / "lesions"


def whole(level: Level, seed: int) -> nn.Module:
    """A fresh network of the level's architecture, with the weights that it names but for the head. Raises `ValueError`
    where those do not fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.build(level.arch)
    if level.weights is not None:
        file, own = TensorFile.open(level.weights), network.state_dict()
        head = f"{_name_of(network, last_layer(network))}."
        trunk = {name: torch.from_numpy(np.array(file.tensor(name))) for name in file if not name.startswith(head)}
        if wrong := [name for name in own if not name.startswith(head) and name not in trunk]:
            raise ValueError(f"{level.weights.name} lacks {len(wrong)} tensors of {level.arch}'s trunk")
        network.load_state_dict(trunk, strict=False)
    return network


def weights_of(arch: Architecture, named: str, cache: Path) -> Path | None:
    """The file that `--weights` names; for 'imagenet' torchvision's release, fetched once; None for 'random'.

    Raises `OSError` where it cannot be had, with what to do.
    """
    if named == "random":
        return None
    if named != "imagenet":
        if not Path(named).is_file():
            raise OSError(f"{named}: there is no such file")
        return Path(named)
    path = cache / f"{arch}.imagenet.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with httpx.Client(timeout=30, follow_redirects=True) as http:
            try:
                with Releases(http, pretrained.torchvision_url).downloaded(arch) as (url, folder):
                    tensorfile.write(path, pretrained.read(url, folder))
            except WeightsUnavailable as error:
                raise OSError(
                    f"{arch}'s ImageNet weights cannot be fetched by this machine: {str(error).partition(';')[0]}.\n"
                    "Fetch them on another one, write them as safetensors (safetensors.torch.save_file) and name that "
                    "file, WEIGHTS=FILE.safetensors; or train from random weights, WEIGHTS=random"
                ) from error
    return path


def _name_of(network: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if module is wanted)


def chosen(folder: Folder, split: str, seed: int) -> list[Site]:
    """A split's sites, but for those that get nothing. Raises `DatasetError`, also where a lesion is at two sites or on
    two sides: no figure would be of lesions that nobody trained on."""
    found = []
    for choice in check.choices(folder, split):
        try:
            found.append(dataset.choose(folder, choice, seed))
        except DatasetError:  # of small Dirichlet shares some sites get nothing
            continue
    shared, overlapping = dataset.shared_lesions(found), sum(site.overlapping_lesions() for site in found)
    if shared or overlapping:
        raise DatasetError(f"{split}: {shared} lesions are at two sites, {overlapping} on two sides of one")
    return found


class Sites:
    """A folder's hospitals by split and seed; those of the last are kept, as are features."""

    def __init__(self, level: Level, folder: Folder, threads: int = 1) -> None:
        self._level, self._folder = level, folder
        self._features = (
            None if level.whole else features.cached(folder, level.weights, level.size, level.cache, threads)
        )
        self._last: tuple[tuple[str, int], list[Hospital]] | None = None

    def hospitals(self, split: str, seed: int) -> list[Hospital]:
        """Those that have pictures to train on. Raises `DatasetError`."""
        if self._last is None or self._last[0] != (split, seed):
            found = [self._hospital(site) for site in chosen(self._folder, split, seed)]
            self._last = (split, seed), [each for each in found if len(each.training) > 1]
        return self._last[1]

    def build(self, seed: int) -> nn.Module:
        """A fresh network that fits the hospitals' pictures."""
        if not self._level.whole:
            return features.head(self._level.head, len(CLASSES), seed)
        return whole(self._level, seed)

    def _hospital(self, site: Site) -> Hospital:
        if self._features is None:
            return self._with_pictures(site)
        known = self._features.positions
        sides = [[each for each in side if each.image in known] for side in (site.training, site.held_out)]
        plain = [_pictures(side, self._features.of(side)) for side in sides]
        stamped = [self._features.of(side, stamped=True) for side in sides]
        return Hospital(site.name, plain[0], plain[1], stamped[0], stamped[1])

    def _with_pictures(self, site: Site) -> Hospital:
        with tempfile.TemporaryDirectory() as scratch:
            decoded = pictures.decode_site(site, self._level.size, Path(scratch), 2)
        sides = (decoded.training, decoded.held_out)
        stamped = [torch.from_numpy(attacks.stamp(side.images.numpy())) for side in sides]
        return Hospital(site.name, sides[0], sides[1], stamped[0], stamped[1])


def _pictures(side: list[Picture], images: torch.Tensor) -> Pictures:
    return Pictures(images, tuple(each.label for each in side), tuple(each.lesion for each in side))

"""Bases that an aggregator made for reading: what they get of an update, and whether a node trains them at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from concilia_client_node import networks
from concilia_client_node import tampering as node
from concilia_client_node.dataset import Folder
from concilia_client_node.errors import Refused, WeightsError
from concilia_client_node.floors import Floors
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import Extent
from concilia_kit import digests
from concilia_kit.wire.training import LocalTraining, TrainTask
from torch import Tensor, nn

from benchmarks.privacy_attacks import imprinting, likeness, payload, rebuilding, tampering
from benchmarks.privacy_attacks.likeness import Likeness
from benchmarks.privacy_attacks.membership import part
from benchmarks.privacy_attacks.passing import Backwards
from benchmarks.privacy_attacks.rebuilding import ARCHITECTURE, EPSILON, HOSPITALS, SIDE, Rebuilt

BATCH = 32
FLOORS = Floors(batch=16, lesions=50, steps=10)
"""As a careful hospital may have them."""
_OTHERS = 60
_RATE = 10.0
"""As fast as a task may ask for: the more of the gradient is left after rounding."""
_SHOWN = 8


class Protection(StrEnum):
    """What the aggregator has of the hospital's update; words without masks show that it is the masks that protect."""

    NOTHING = "unprotected"
    BARE = "its words, without masks"
    WORDS = "secure aggregation: its masked words"
    PRIVATE = "differential privacy"


@dataclass(frozen=True)
class Tampered:
    """A base made for reading: how it is made of the attacker's own pictures, which of a site's pictures it is set on,
    and what reads an update of it."""

    name: str
    make: Callable[[Tensor, int], nn.Module]
    target: Callable[[Pictures], Pictures]
    backwards: Callable[[nn.Module], Backwards]
    read: Callable[[nn.Module, Backwards, Mapping[str, Tensor], Pictures], Tensor]
    read_from: str


def _first(some: Pictures) -> Pictures:
    return part(some, np.arange(BATCH))


def one_of_each(some: Pictures) -> Pictures:
    """One picture of each of the classes that there are, of six at most."""
    rows = {label: row for row, label in reversed(list(enumerate(some.labels)))}
    return part(some, np.array([rows[label] for label in sorted(rows)[: len(some.classification.classes) - 1]]))


IMPRINT = Tampered(
    "imprint",
    imprinting.imprinted,
    _first,
    imprinting.backwards,
    lambda _network, back, told, some: imprinting.read(back, told, 2 * len(some)),
    imprinting.READ_FROM,
)
PASSING = Tampered(
    "passing",
    lambda _own, seed: tampering.tampered(seed),
    one_of_each,
    tampering.backwards,
    lambda network, back, told, some: tampering.read(network, back, told, some.labels),
    tampering.READ_FROM,
)
HIDDEN = Tampered(
    "passing, hidden",
    lambda _own, seed: tampering.tampered(seed, hidden=True, dither=0.1),
    one_of_each,
    tampering.backwards,
    lambda network, back, told, some: tampering.read(network, back, told, some.labels),
    tampering.READ_FROM,
)
MODELS = (IMPRINT, PASSING, HIDDEN)


def attack(
    model: Tampered, network: nn.Module, back: Backwards, some: Pictures, protection: Protection, seed: int
) -> Rebuilt:
    """What an update of that base gives away of the pictures, all in one step."""
    local = payload.one_step(len(some), SIDE, _RATE)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = folder / "base.safetensors"
        networks.save(network, base)
        if protection is Protection.PRIVATE:
            privacy = payload.privacy_for(EPSILON, local, len(some))
            tensors = payload.trained_privately(ARCHITECTURE, base, some, local, privacy)
        else:
            tensors = payload.trained(ARCHITECTURE, base, some, local, seed)
        names = frozenset({model.read_from})
        if protection in (Protection.BARE, Protection.WORDS):
            paths, roster = payload.masked(
                folder, [tensors] * HOSPITALS, base, [len(some)] * HOSPITALS, bare=protection is Protection.BARE
            )
            told = payload.gradient_of_words(base, paths[0], local, names, roster)
        else:
            update = payload.plain(folder / "update.safetensors", tensors, base)
            told = payload.gradient(base, update, local, names)
    found = likeness.matched(model.read(network, back, told, some), rebuilding.real(some))
    return Rebuilt(tuple(likeness.compare(found, rebuilding.real(some))), found)


def refused_by(network: nn.Module, local: LocalTraining, images: int, floors: Floors = FLOORS) -> list[str]:
    """What of a node refuses to train that base by that task on so many pictures, a lesion each, of all that there
    are: its look at the model, its floors."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base.safetensors"
        networks.save(network, base)
        try:
            node.see_model(base)
        except WeightsError:
            found.append("model")
        task = TrainTask(
            job="0" * 64,
            round=1,
            architecture=ARCHITECTURE,
            base=digests.of_file(base),
            seed=0,
            deadline=2**31,
            local=local,
        )
    try:
        floors.see_extent(task, Extent(images, images))
    except Refused:
        found.append("floors")
    return found


def run(folder: Folder, trials: int) -> tuple[list[dict[str, Any]], list[tuple[str, Tensor]]]:
    """A row for each base and protection, over so many bases each and batches, the first of which are attacked with
    protection too; and the sheet of the first batch."""
    rows: list[dict[str, Any]] = []
    shown: list[tuple[str, Tensor]] = []
    for model in MODELS:
        of: dict[Protection, list[Likeness]] = {each: [] for each in Protection}
        refusals: list[list[str]] = []
        images = 0
        for trial in range(trials):
            every = rebuilding.lesions(folder, 4 * BATCH + _OTHERS, SIDE, trial)
            own = rebuilding.real(part(every, np.arange(_OTHERS)))
            some = model.target(part(every, np.arange(_OTHERS, len(every))))
            images = len(some)
            network = model.make(own, trial)
            back = model.backwards(network)
            refusals.append(refused_by(network, payload.one_step(images, SIDE, _RATE), images))
            if not trial:
                shown.append((f"{model.name}: real", rebuilding.real(some)[:_SHOWN]))
            for protection in Protection if not trial else (Protection.NOTHING,):
                rebuilt = attack(model, network, back, some, protection, trial)
                of[protection] += rebuilt.likeness
                if not trial:
                    shown.append((f"{model.name}: {protection.value}", rebuilt.pictures[:_SHOWN]))
        for protection in Protection:
            told = {
                "pictures": folder.source,
                "base": model.name,
                "what the attacker has": protection.value,
                "batch of": images,
                "pictures read": len(of[protection]),
            }
            rows.append(told | likeness.summed(of[protection]) | _refusals(refusals))
    return rows, shown


def _refusals(some: list[list[str]]) -> dict[str, str]:
    return {
        f"refused for its {what}": f"{sum(what in each for each in some)} of {len(some)}"
        for what in ("model", "floors")
    }

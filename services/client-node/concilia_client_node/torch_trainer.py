"""Training and evaluation with torch on the hospital's own pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from concilia_kit import class_shares
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import ArchitectureName, Evaluation, LocalTraining, Personal
from torch import nn

from concilia_client_node import evaluation, networks, training
from concilia_client_node.local_data import LocalData
from concilia_client_node.pictures import DecodedSite
from concilia_client_node.sampling import Sampled
from concilia_client_node.trainer import NOTHING, Carried, Check, Counts, Extent, Outcome, Tensors


@dataclass(frozen=True)
class TorchTrainer:
    """See `Trainer`."""

    data: LocalData
    device: torch.device
    threads: int
    mixed: bool = False

    @property
    def skipped_images(self) -> int:
        """See `Trainer`."""
        return self.data.skipped_images

    def extent(self, local: LocalTraining) -> Extent:
        """See `Trainer`."""
        return self.data.extent(local.max_images)

    def prepare(self, image_size: int, check: Check) -> None:
        """See `Trainer`. Raises `TooManyUnreadable`."""
        self.data.at(image_size, check)

    def train(
        self,
        architecture: ArchitectureName,
        base: Path,
        local: LocalTraining,
        seed: int,
        progress: Callable[[float], None],
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
    ) -> tuple[Outcome, Tensors]:
        """See `Trainer`."""
        pictures, network = self._begin(architecture, base, local.image_size, check, carried, trunk)
        outcome = training.train(
            network,
            pictures.training,
            local,
            seed,
            self.device,
            progress=progress,
            check=check,
            correction=carried.correction,
            mixed=self.mixed,
        )
        return outcome, networks.tensors(network)

    def train_privately(
        self,
        architecture: ArchitectureName,
        base: Path,
        local: LocalTraining,
        privacy: Privacy,
        allow: Callable[[Sampled], None],
        progress: Callable[[float], None],
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
    ) -> tuple[Outcome, Tensors]:
        """See `Trainer`. In float32 whatever else is trained in."""
        # Opacus brings SciPy, which costs seconds and memory where no job asks for it.
        from concilia_client_node import private_training

        pictures, network = self._begin(architecture, base, local.image_size, check, carried, trunk)
        outcome = private_training.train(
            network,
            pictures.training,
            local,
            privacy,
            self.device,
            allow,
            progress,
            check,
            carried.correction,
            adapter=trunk is not None,
        )
        return outcome, networks.tensors(network)

    def personal(self, architecture: ArchitectureName, which: Personal) -> frozenset[str]:
        """See `Trainer`."""
        return networks.personal(architecture, which)

    def evaluate(
        self,
        architecture: ArchitectureName,
        model: Path,
        image_size: int,
        limits: Evaluation,
        seed: int,
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
        calibrate: bool = False,
    ) -> tuple[Counts, int]:
        """See `Trainer`."""
        pictures, network = self._begin(architecture, model, image_size, check, carried, trunk)
        shift = None
        if limits.class_counts is not None:
            own = np.bincount(pictures.training.labels, minlength=len(limits.class_counts))
            shift = class_shares.shift(own.tolist(), limits.class_counts)
        counts = evaluation.evaluate(
            network,
            pictures.held_out,
            limits.batch_size,
            limits.max_images,
            seed,
            self.device,
            check,
            flips=limits.flips,
            calibrate=calibrate,
            shift=shift,
        )
        return counts, pictures.overlapping_lesions()

    def _begin(
        self,
        architecture: ArchitectureName,
        model: Path,
        size: int,
        check: Check,
        carried: Carried,
        trunk: Path | None,
    ) -> tuple[DecodedSite, nn.Module]:
        """The pictures at a size, and the network of a file."""
        # OpenMP keeps the number of threads a thread, so it is set by the one that works.
        torch.set_num_threads(self.threads)
        pictures = self.data.at(size, check)
        network = networks.load(architecture, model, carried.personal, self.data.classes, trunk=trunk)
        networks.see_side(network, size)
        return pictures, network

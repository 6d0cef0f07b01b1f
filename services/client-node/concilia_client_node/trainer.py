"""What the life of a task asks of whoever trains and evaluates: files and counts on one side, no torch on this one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
from concilia_kit.wire.calibration import Calibration
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import ArchitectureName, Evaluation, LocalTraining, Personal

from concilia_client_node.sampling import Sampled

Rows = tuple[tuple[int, ...], ...]
Check = Callable[[], None]
"""Called between steps of the work; may raise to stop it."""
Tensors = Mapping[str, npt.NDArray[Any]]
"""A model's tensors by name, each an array of its shape on the processor."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Most images that a training may be on, and how many lesions those are of that it is chosen from."""

    images: int
    lesions: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training measured: mean loss and accuracy over the last epoch, and what was trained on. With differential
    privacy neither is measured, and `sampled` says what was done."""

    loss: float | None
    accuracy: float | None
    images: int
    lesions: int
    reach: float | None = None
    """The sum of what each gradient's weight came to in the difference; for plain steps, steps times learning rate."""
    first_loss: float | None = None
    """The base's loss on what was trained on, where it was asked for."""
    class_counts: tuple[int, ...] | None = None
    """All training images by class, where that was asked for."""
    sampled: Sampled | None = None


@dataclass(frozen=True)
class Carried:
    """What a hospital carries from round to round into its next training: tensors of its own that take the place of the
    base's, and what is added to the gradients of the parameters that have these names (SCAFFOLD's c - c_i)."""

    personal: Tensors = field(default_factory=dict)
    correction: Tensors = field(default_factory=dict)


NOTHING = Carried()


@dataclass(frozen=True)
class Counts:
    """Confusion (true by predicted), score histograms a class, sum of cross-entropies in nats, images and lesions."""

    confusion: Rows
    positives: Rows
    negatives: Rows
    loss_sum: float
    images: int
    lesions: int
    calibration: Calibration | None = None


class Trainer(Protocol):
    """A site's data and the means to train and evaluate on it."""

    @property
    def skipped_images(self) -> int:
        """Pictures that cannot be used, as far as is known."""
        ...

    def extent(self, local: LocalTraining) -> Extent:
        """What a training would be on if every picture can be used; known before any is decoded."""
        ...

    def prepare(self, image_size: int, check: Check) -> None:
        """Have the site's pictures at that size. Raises `NodeError` where they do not do, `OSError`."""
        ...

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
        """Train from a base file, an adapter over its `trunk`; the tensors have exactly its names, shapes and dtypes.
        `progress` takes fractions.

        Raises `NodeError`: `WeightsError` where the file does not fit, `Refused` where training makes no sense.
        """
        ...

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
        """As `train`, with differential privacy, and no two alike. `allow` is told what is about to be done, before it
        is, and may raise."""
        ...

    def personal(self, architecture: ArchitectureName, which: Personal) -> frozenset[str]:
        """Names of the tensors that a hospital keeps to itself."""
        ...

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
        """A model file, an adapter over its `trunk`, on the held-out lesions, and how many of them are among the
        training lesions too (none should). With counts for calibration where that is asked for.

        Raises `NodeError`.
        """
        ...


def mix(*parts: object) -> int:
    """A 63-bit seed from the task's seed, the round, the address or whatever sets one run apart from another."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def batches_of(images: int, batch_size: int) -> int:
    """Batches an epoch, of sizes that differ by one at most: a small last batch would upset batch normalisation, which
    cannot learn from a single image at all."""
    return min(math.ceil(images / batch_size), images // 2)

"""A hospital's last word: floors below which it trains nothing and sends nothing, whatever the consortium asks for.

They are settings of the hospital's own machine, which nobody else can change. Asked first, by what is known before
anything is decoded or trained; and again of what was made, before it leaves. What an update tells of single pictures
is the more, the fewer went into a step and the fewer steps there were: gradient inversion rebuilds pictures from single
steps on small batches (Geiping et al., "Inverting Gradients", 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

from concilia_kit.wire.training import TrainTask

from concilia_client_node.errors import Refused
from concilia_client_node.sampling import planned
from concilia_client_node.trainer import Extent, batches_of


@dataclass(frozen=True)
class Floors:
    """Fewest pictures in a batch, lesions in an update, and steps; whether updates leave masked only."""

    batch: int = 1
    lesions: int = 1
    steps: int = 1
    secure: bool = False

    @property
    def any(self) -> bool:
        """Whether there is any that counts something."""
        return max(self.batch, self.lesions, self.steps) > 1

    def see_job(self, task: TrainTask) -> None:
        """Raises `Refused` where the job is not of the kind that this hospital takes part in."""
        if self.secure and task.secure is None:
            raise Refused("this hospital sends updates with secure aggregation only, and the job has none")

    def see_extent(self, task: TrainTask, extent: Extent) -> None:
        """Raises `Refused` where a training on so many images of so many lesions is below a floor. With differential
        privacy the batch is the one that is to be expected: who is in it is drawn."""
        # With differential privacy any lesion may be drawn, however few images make an epoch.
        lesions = min(extent.lesions, extent.images) if task.privacy is None else extent.lesions
        if lesions < self.lesions:
            raise Refused(
                f"this hospital sends no update from fewer than {self.lesions} lesions, and this one is of {lesions}"
            )
        if extent.images < 2 or extent.lesions < 1:
            return  # training says so in words of its own
        if task.privacy is not None:
            sampled = planned(task.local, task.privacy, extent.lesions)
            batch, steps = int(sampled.rate * extent.lesions + 0.5), sampled.steps
        else:
            batches = batches_of(extent.images, task.local.batch_size)
            batch, steps = extent.images // batches, batches * task.local.epochs
        if batch < self.batch:
            raise Refused(f"this hospital trains in batches of at least {self.batch}, and this job's are of {batch}")
        if steps < self.steps:
            raise Refused(
                f"this hospital sends no update from fewer than {self.steps} steps, and this one is of {steps}"
            )


NONE = Floors()

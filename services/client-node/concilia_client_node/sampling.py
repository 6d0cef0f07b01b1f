"""What a differentially private round does: how likely each lesion is in a step, and how many steps there are; pure.

Both follow from the task and from how many lesions there are. That number is taken for known: it is in the node's
registration, and no noise is on it.
"""

from __future__ import annotations

import math

from concilia_kit.wire.privacy import CentralNoise, Privacy
from concilia_kit.wire.training import LocalTraining
from pydantic import BaseModel, ConfigDict, Field


class Sampled(BaseModel):
    """Steps of one training: each on a sample in which every lesion is with probability `rate`, with Gaussian noise of
    `noise` times the clipping norm."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    noise: float = Field(gt=0)
    clip: float = Field(gt=0)
    rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)


def central(noise: CentralNoise) -> Sampled:
    """What a round with noise at the aggregator does to a hospital's lesions, and to all that it has: one step, of
    which every lesion is a part. Whatever one lesion may change of an update, it stays within a ball of `radius`; so it
    moves the sum by twice that at most, of which the noise is half as many multiples."""
    return Sampled(noise=noise.noise / 2, clip=2 * noise.radius, rate=1.0, steps=1)


def planned(local: LocalTraining, privacy: Privacy, lesions: int) -> Sampled:
    """What a hospital with so many lesions, one at least, does in a round: as many steps as it takes to see as many
    lesions as it has, an epoch. `max_images` makes an epoch shorter, and leaves no lesion out."""
    seen = min(lesions, local.max_images or lesions)
    return Sampled(
        noise=privacy.noise,
        clip=privacy.clip,
        rate=min(1.0, local.batch_size / lesions),
        steps=local.epochs * math.ceil(seen / local.batch_size),
    )

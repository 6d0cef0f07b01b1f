"""Differential privacy as jobs ask for it and hospitals account for it.

The unit is the lesion, with all its pictures: two data sets are neighbours where one has one lesion more. Sources:
Dwork and Roth, "The Algorithmic Foundations of Differential Privacy" (2014); Abadi et al., "Deep Learning with
Differential Privacy" (2016), algorithm 1.
"""

from __future__ import annotations

from pydantic import Field

from concilia_kit.strict import Integer, Number
from concilia_kit.wire.base import Wire


class Privacy(Wire):
    """DP-SGD at each hospital, as a job asks for it: the batches are Poisson samples of lesions, each with one of its
    pictures, each gradient is clipped, and Gaussian noise is added to their sum."""

    clip: Number = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False, description="L2 norm of a lesion's gradient")
    noise: Number = Field(
        ge=0.1, le=1000, allow_inf_nan=False, description="standard deviation, in multiples of the clipping norm"
    )
    delta: Number = Field(default=1e-5, gt=0, lt=0.01)


class Spent(Wire):
    """What a hospital's update cost, and what all its updates of the job did; at `delta`, by the hospital's account.

    `steps` of the round, each on a sample in which every lesion is with probability `rate`.
    """

    epsilon: Number = Field(ge=0, allow_inf_nan=False, description="of all rounds of the job so far")
    delta: Number = Field(gt=0, lt=1)
    noise: Number = Field(gt=0)
    clip: Number = Field(gt=0)
    rate: Number = Field(gt=0, le=1)
    steps: Integer = Field(ge=1, lt=2**53)

"""Differential privacy as jobs ask for it and hospitals account for it.

The unit is the lesion, with all its pictures: two data sets are neighbours where one has one lesion more. Sources:
Dwork and Roth, "The Algorithmic Foundations of Differential Privacy" (2014); Abadi et al., "Deep Learning with
Differential Privacy" (2016), algorithm 1; McMahan et al., "Learning Differentially Private Recurrent Language Models"
(2018), algorithm 1.
"""

from __future__ import annotations

from pydantic import Field

from concilia_kit.strict import Integer, Number, Truth
from concilia_kit.wire.base import Wire

LEAST_RADIUS, MOST_RADIUS = 1e-6, 1e6
"""What updates may be cut to where noise at the aggregator goes by it."""


class Privacy(Wire):
    """DP-SGD at each hospital, as a job asks for it: the batches are Poisson samples of lesions, each with one of its
    pictures, each gradient is clipped, and Gaussian noise is added to their sum."""

    clip: Number = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False, description="L2 norm of a lesion's gradient")
    noise: Number = Field(
        ge=0.1, le=1000, allow_inf_nan=False, description="standard deviation, in multiples of the clipping norm"
    )
    delta: Number = Field(default=1e-5, gt=0, lt=0.01)


class CentralNoise(Wire):
    """Noise at the aggregator, in place of the hospitals' own: it cuts each update to the length `radius` and adds
    Gaussian noise of `noise` times that to their sum. Whoever sees models alone is kept from telling lesions by it; the
    aggregator, which has the updates and makes the noise, is not."""

    radius: Number = Field(
        ge=LEAST_RADIUS, le=MOST_RADIUS, allow_inf_nan=False, description="L2 norm of an update's difference"
    )
    noise: Number = Field(ge=0.01, le=1000, allow_inf_nan=False, description="of the sum, in multiples of `radius`")
    delta: Number = Field(default=1e-5, gt=0, lt=0.01)


class Spent(Wire):
    """What a hospital's update cost, and what all its updates of the job did; at `delta`, by the hospital's account.

    `steps` of the round, each on a sample in which every lesion is with probability `rate`. With noise at the
    aggregator (`central`) a round is one step, of which every lesion is a part; `clip` is then how far another update
    of this hospital can move the sum, twice what updates are cut to, and what it cost is told of models alone: to the
    aggregator everything was.
    """

    epsilon: Number = Field(ge=0, allow_inf_nan=False, description="of all rounds of the job so far")
    delta: Number = Field(gt=0, lt=1)
    noise: Number = Field(gt=0)
    clip: Number = Field(gt=0)
    rate: Number = Field(gt=0, le=1)
    steps: Integer = Field(ge=1, lt=2**53)
    central: Truth = Field(
        default=False,
        exclude_if=lambda central: not central,
        description="the noise is the aggregator's, so that it protects from others than the aggregator",
    )

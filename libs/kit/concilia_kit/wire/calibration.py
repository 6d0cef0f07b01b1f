"""How far a model's shares can be taken at their word: what hospitals count for it, and what comes of their counts.

A hospital divides its held-out lesions into two halves and counts on each, so that what is reported of a temperature or
a threshold is of lesions that it was not chosen by: chosen on one half, judged on the other, and the other way round.
All are counts and sums, and add up over hospitals.
"""

from __future__ import annotations

import math
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from concilia_kit.strict import NO_TEXT
from concilia_kit.wire.base import Wire

TEMPERATURES: tuple[float, ...] = tuple(2.0 ** (step / 8) for step in range(-8, 17))
"""What logits are divided by, from a half to four."""
PLAIN = TEMPERATURES.index(1.0)
"""Where the network stands as it is."""
CONFIDENCE_BINS = 15
"""Of the most probable class's share, equal over [0, 1]."""
ODDS_BINS = 128
ODDS_LIMIT = 16.0
"""Bins of log-odds, equal over [-16, 16]; what lies beyond is in the first and last."""
ODDITY_BINS = 256
ODDITY_LIMIT = 8.0
"""Likewise, of how odd the network finds a picture (`concilia_kit.oddity`)."""
CONFIDENCE_STEP = 1e-4
"""To which summed confidences are rounded."""

Count = Annotated[int, Field(ge=0, lt=2**53), NO_TEXT]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_TEXT]
_Sum = Annotated[float, Field(ge=0, lt=2**53, allow_inf_nan=False), NO_TEXT]
_Item = TypeVar("_Item")
_OfConfidences = Annotated[tuple[_Item, ...], Field(min_length=CONFIDENCE_BINS, max_length=CONFIDENCE_BINS)]
_OfTemperatures = Annotated[tuple[_Item, ...], Field(min_length=len(TEMPERATURES), max_length=len(TEMPERATURES))]
_OfOdds = Annotated[tuple[_Item, ...], Field(min_length=ODDS_BINS, max_length=ODDS_BINS)]
_OfOddities = Annotated[tuple[_Item, ...], Field(min_length=ODDITY_BINS, max_length=ODDITY_BINS)]


class Reliability(Wire):
    """Pictures by the share that their most probable class was given: how many, how many of these are of that class,
    and the sum of their shares."""

    images: _OfConfidences[Count]
    correct: _OfConfidences[Count]
    confidence: _OfConfidences[_Sum]

    @model_validator(mode="after")
    def _bins(self) -> Self:
        for images, correct, confidence in zip(self.images, self.correct, self.confidence, strict=True):
            if max(correct, confidence) > images:
                raise ValueError("no bin has more correct images, or confidence, than images")
        return self


class Half(Wire):
    """What is counted on one half of a hospital's held-out lesions.

    `losses`: summed negative log-likelihood, nats, at each of `TEMPERATURES`; `reliability` likewise. `positives` and
    `negatives`: pictures that are (not) of the critical class by their log-odds of it at temperature one, which is
    log p / (1 - p); None where no class is critical. `oddity`: pictures by how odd the network finds them; None where
    it has no batch normalisation to tell by.
    """

    images: Count
    losses: _OfTemperatures[_Sum]
    reliability: _OfTemperatures[Reliability]
    positives: _OfOdds[Count] | None = None
    negatives: _OfOdds[Count] | None = None
    oddity: _OfOddities[Count] | None = None

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if {sum(each.images) for each in self.reliability} != {self.images}:
            raise ValueError("reliability must sum to images at each temperature")
        if self.oddity is not None and sum(self.oddity) != self.images:
            raise ValueError("oddity must sum to images")
        if len({sum(each.correct) for each in self.reliability}) != 1:
            raise ValueError("a temperature changes no class: correct images must be as many at each")
        if (self.positives is None) != (self.negatives is None):
            raise ValueError("positives and negatives go together")
        if self.positives is not None and sum((*self.positives, *(self.negatives or ()))) != self.images:
            raise ValueError("positives and negatives must sum to images")
        return self

    @property
    def correct(self) -> int:
        """Pictures whose most probable class is theirs."""
        return sum(self.reliability[PLAIN].correct)


class Calibration(Wire):
    """What is counted on both halves of a hospital's held-out lesions, all pictures of a lesion in one."""

    halves: tuple[Half, Half]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len({(half.positives is None, half.oddity is None) for half in self.halves}) != 1:
            raise ValueError("one half has a critical class or oddities, and the other none")
        return self

    @property
    def images(self) -> int:
        """Pictures of both halves."""
        return sum(half.images for half in self.halves)

    @property
    def correct(self) -> int:
        """Of both halves, those whose most probable class is theirs."""
        return sum(half.correct for half in self.halves)

    @property
    def critical(self) -> int | None:
        """Pictures of the critical class, None where none is."""
        counted = [sum(half.positives) for half in self.halves if half.positives is not None]
        return sum(counted) if counted else None


class CriticalUse(Wire):
    """From which share on the class is told that must not be missed, and how good that is.

    `threshold` is of the network's own share, at temperature one: a picture with that or more is above it. It is the
    highest that finds `wanted` of the class's held-out pictures. `sensitivity` and `specificity` are cross-fitted: each
    half judged by the threshold that the other one gave.
    """

    code: str
    threshold: Share
    wanted: Share
    sensitivity: Share
    specificity: Share | None = Field(description="None where no other class has pictures")
    positives: Count
    negatives: Count


class UnusualUse(Wire):
    """From which oddity on a picture may be none of what the model was trained for. Of held-out pictures `share` are
    told to be so, cross-fitted."""

    threshold: float = Field(allow_inf_nan=False)
    share: Share


class Use(Wire):
    """How a model's outputs are to be read, from `images` held-out pictures of all hospitals together.

    Logits are the mean over a picture's turns where `flips`, get `class_shares.shift` added where both counts are
    there, and are divided by `temperature` then. Errors (expected calibration error) and losses (nats) are
    cross-fitted: each half's at the other one's temperature. None, as `temperature` is one, where nothing was
    calibrated.
    """

    flips: bool = False
    images: Count = 0
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    error_before: Share | None = None
    error_after: Share | None = None
    loss_before: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    loss_after: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    critical: CriticalUse | None = None
    unusual: UnusualUse | None = None
    # Both left out where there are none: models from before there were such keep their words.
    class_counts: tuple[Count, ...] | None = Field(
        default=None,
        exclude_if=lambda counts: counts is None,
        description="all hospitals' pictures by class: evaluated with each hospital's own shares held against these",
    )
    own_counts: tuple[Count, ...] | None = Field(
        default=None,
        exclude_if=lambda counts: counts is None,
        description="pictures by class where the picture is from; of a request, never of a model",
    )


AS_IT_IS = Use()
"""A network's outputs as they are: of models from before there was calibration, and of jobs that do without."""


class Calibrated(Wire):
    """What a round's calibration comes to, with the pictures by confidence, as the network is and at the other half's
    temperature."""

    use: Use
    before: Reliability
    after: Reliability


def oddity_edge(bin_: int) -> float:
    """The lower edge of a bin of oddities."""
    return -ODDITY_LIMIT + bin_ * (2 * ODDITY_LIMIT / ODDITY_BINS)


def odds_edge(bin_: int) -> float:
    """The lower edge of a bin of log-odds; that of the first is all."""
    return -math.inf if bin_ == 0 else -ODDS_LIMIT + bin_ * (2 * ODDS_LIMIT / ODDS_BINS)

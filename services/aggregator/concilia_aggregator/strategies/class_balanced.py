"""The mean that every class has an equal part in."""

from __future__ import annotations

import math

from concilia_aggregator.strategies.combining import shares
from concilia_aggregator.strategies.geometry import Geometry


class ClassBalanced:
    """Averaging for the balanced error: a hospital counts for the mean, over the classes that anybody has, of its share
    of the class's training images. A collection of nevi alone, however large, counts for less than a small one with
    what is rare.

    With `n_hc` images of class c at hospital h: `base + sum_h w_h (update_h - base)`, and `w_h` is the mean over c of
    `n_hc / n_c`. That is how much of the balanced error, the mean of the classes' errors, is the hospital's; FedAvg's
    `n_h / n` is how much of the plain error is.

    Sources: Menon et al., "On the Statistical Consistency of Algorithms for Binary Classification under Class
    Imbalance" (ICML 2013), for the balanced error; McMahan et al. (2017), section 2, for the weighting of a sum of
    clients' objectives.
    """

    def coefficients(self, geometry: Geometry) -> list[float]:
        """See `Rule.coefficients`. Raises `ValueError` where a hospital does not tell its images by class, or tells
        other classes apart than others."""
        counts = [fact.class_counts for fact in geometry.facts]
        if any(each is None for each in counts):
            raise ValueError("the strategy needs every hospital's training images by class")
        told = [each for each in counts if each is not None]
        if len({len(each) for each in told}) != 1:
            raise ValueError("hospitals tell different numbers of classes apart")
        parts = [shares(each) for each in zip(*told, strict=True) if sum(each)]
        if not parts:
            raise ValueError("no hospital has a training image of any class")
        return [math.fsum(each) / len(parts) for each in zip(*parts, strict=True)]

"""Aggregation strategies as jobs name them, with their parameters. What they do is the aggregator's
(`concilia_aggregator.strategies`)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from concilia_kit.signing import Address
from concilia_kit.strict import NO_TEXT, IntegerOrNone, Number, NumberOrNone
from concilia_kit.wire.base import Wire, is_none
from concilia_kit.wire.privacy import LEAST_RADIUS, MOST_RADIUS, CentralNoise


class StrategyName(StrEnum):
    """The aggregation strategies that come with the aggregator."""

    FEDAVG = "fedavg"
    FEDPROX = "fedprox"
    FEDAVGM = "fedavgm"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"
    FEDADAGRAD = "fedadagrad"
    SCAFFOLD = "scaffold"
    FEDNOVA = "fednova"
    FEDBN = "fedbn"
    FEDREP = "fedrep"
    QFEDAVG = "qfedavg"
    CLASS_BALANCED = "class_balanced"
    FEDBUFF = "fedbuff"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    NORM_CLIPPING = "norm_clipping"
    DP_FEDAVG = "dp_fedavg"
    GEOMETRIC_MEDIAN = "geometric_median"
    KRUM = "krum"
    MULTI_KRUM = "multi_krum"
    BULYAN = "bulyan"
    CENTRED_CLIPPING = "centred_clipping"
    FLTRUST = "fltrust"


class Mixing(StrEnum):
    """What a robust strategy is given in place of the updates: means of each one's nearest, or of some at random."""

    NEAREST_NEIGHBOURS = "nearest_neighbours"
    BUCKETING = "bucketing"


OtherName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}\.[a-z0-9_]{1,40}$")]
"""A strategy that another package brings, `package.strategy`."""
ParameterName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
Parameter = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False), NO_TEXT]

BY_REACH = frozenset({StrategyName.SCAFFOLD, StrategyName.FEDNOVA})
"""Strategies that divide by the sum of local steps' rates, which an adaptive optimizer does not have."""
OWN_TENSORS = frozenset({StrategyName.FEDBN, StrategyName.FEDREP})
"""Strategies in which hospitals keep tensors to themselves."""
OF_SUMS = frozenset(
    {
        StrategyName.FEDAVG,
        StrategyName.FEDPROX,
        StrategyName.FEDAVGM,
        StrategyName.FEDADAM,
        StrategyName.FEDYOGI,
        StrategyName.FEDADAGRAD,
    }
)
"""Strategies that need no more of a round than the sum of its updates."""
MIXABLE = frozenset(
    {
        StrategyName.MEDIAN,
        StrategyName.TRIMMED_MEAN,
        StrategyName.NORM_CLIPPING,
        StrategyName.GEOMETRIC_MEDIAN,
        StrategyName.KRUM,
        StrategyName.MULTI_KRUM,
        StrategyName.BULYAN,
        StrategyName.CENTRED_CLIPPING,
    }
)


class Strategy(Wire):
    """An aggregation strategy and its parameters; each has its usual value where it is not given."""

    name: StrategyName | OtherName = StrategyName.FEDAVG
    proximal_mu: Number = Field(default=0.01, ge=0, le=100, description="FedProx only")
    trim: NumberOrNone = Field(
        default=None,
        ge=0,
        lt=0.5,
        description="trimmed mean only: share of values left out at each end; 0.1 by default",
    )
    # Left out where they are not given, so that ids and models of jobs from before there were such stay what they are.
    hostile: NumberOrNone = Field(
        default=None,
        ge=0,
        lt=0.5,
        exclude_if=is_none,
        description="Krum, Bulyan, mixing: share of updates taken for hostile; 0.2 by default",
    )
    radius: NumberOrNone = Field(
        default=None,
        gt=0,
        le=1e12,
        exclude_if=is_none,
        description="clipping: longest difference; the median of the lengths by default, of DP-FedAvg to be given",
    )
    mixing: Mixing | None = Field(default=None, exclude_if=is_none, description="before a robust strategy")
    bucket: IntegerOrNone = Field(
        default=None, ge=2, le=1000, exclude_if=is_none, description="bucketing: updates of a bucket; 2 by default"
    )
    server_rate: NumberOrNone = Field(
        default=None,
        gt=0,
        le=1000,
        exclude_if=is_none,
        description="server optimisers: learning rate; 1 for FedAvgM, 0.01 for the others by default",
    )
    beta1: NumberOrNone = Field(
        default=None, ge=0, lt=1, exclude_if=is_none, description="server optimisers: momentum; 0.9 by default"
    )
    beta2: NumberOrNone = Field(
        default=None, ge=0, lt=1, exclude_if=is_none, description="FedAdam, FedYogi: 0.99 by default"
    )
    tau: NumberOrNone = Field(
        default=None, gt=0, le=1000, exclude_if=is_none, description="adaptive optimisers: 0.001 by default"
    )
    q: NumberOrNone = Field(
        default=None, ge=0, le=100, exclude_if=is_none, description="q-FedAvg: 1 by default; 0 is no fairness"
    )
    root: Address | None = Field(
        default=None, exclude_if=is_none, description="FLTrust: the hospital whose update is trusted"
    )
    noise: NumberOrNone = Field(
        default=None,
        ge=0.01,
        le=1000,
        exclude_if=is_none,
        description="DP-FedAvg: standard deviation of the noise on the sum, in multiples of the radius; to be given",
    )
    delta: NumberOrNone = Field(
        default=None, gt=0, lt=0.01, exclude_if=is_none, description="DP-FedAvg: what ε is told at; 1e-5 by default"
    )
    parameters: dict[ParameterName, Parameter] | None = Field(
        default=None, max_length=32, exclude_if=is_none, description="of a strategy that another package brings"
    )

    @property
    def asynchronous(self) -> bool:
        """Whether hospitals train at their own pace, and work that is late counts in a later round."""
        return self.name is StrategyName.FEDBUFF

    @property
    def central(self) -> CentralNoise | None:
        """The noise that the aggregator adds, where it does."""
        if self.name is not StrategyName.DP_FEDAVG or self.radius is None or self.noise is None:
            return None
        delta = {} if self.delta is None else {"delta": self.delta}
        return CentralNoise(radius=self.radius, noise=self.noise, **delta)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mixing is not None and self.name not in MIXABLE:
            raise ValueError("mixing goes before a robust strategy")
        if self.name is StrategyName.FLTRUST and self.root is None:
            raise ValueError("FLTrust needs a root, the address of the hospital whose update is trusted")
        if self.name is StrategyName.DP_FEDAVG:
            if self.radius is None or self.noise is None:
                raise ValueError("dp_fedavg needs a radius, which updates are cut to, and noise, in multiples of it")
            if not LEAST_RADIUS <= self.radius <= MOST_RADIUS:
                raise ValueError(f"radius of dp_fedavg must be {LEAST_RADIUS:g} to {MOST_RADIUS:g}")
        elif self.noise is not None or self.delta is not None:
            raise ValueError("noise and delta are dp_fedavg's: no other strategy adds any")
        if self.parameters and isinstance(self.name, StrategyName):
            raise ValueError("'parameters' are of strategies that other packages bring")
        return self

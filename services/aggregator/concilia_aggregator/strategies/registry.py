"""Which strategy a job's spec names: those that come with the aggregator, and those that other packages bring.

Another package brings one by an entry point of the group `concilia.strategies`, named `package.strategy`, that is a
function of the job's `parameters` (numbers by name) and returns a `Blockwise`, a `Weighing` or a `Stateful`;
docs/strategies.md has an example. It must be installed where jobs are folded and where they are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points

from concilia_kit.wire.strategy import Mixing, StrategyName
from concilia_kit.wire.strategy import Strategy as StrategySpec
from concilia_kit.wire.training import LocalTraining, Personal

from concilia_aggregator.strategies.base import Blockwise, Stateful, Strategy, Weighing
from concilia_aggregator.strategies.bulyan import Bulyan
from concilia_aggregator.strategies.centred_clipping import CentredClipping
from concilia_aggregator.strategies.class_balanced import ClassBalanced
from concilia_aggregator.strategies.combining import Combined
from concilia_aggregator.strategies.dp_fedavg import DPFedAvg
from concilia_aggregator.strategies.fedavg import FedAvg
from concilia_aggregator.strategies.fedbuff import FedBuff
from concilia_aggregator.strategies.fednova import FedNova
from concilia_aggregator.strategies.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi, Optimised
from concilia_aggregator.strategies.fedprox import FedProx
from concilia_aggregator.strategies.fltrust import FLTrust
from concilia_aggregator.strategies.geometric_median import GeometricMedian
from concilia_aggregator.strategies.hostile import SHARE, Hostile
from concilia_aggregator.strategies.krum import MultiKrum
from concilia_aggregator.strategies.median import Median
from concilia_aggregator.strategies.mixing import Bucketing, Mixed, NearestNeighbours
from concilia_aggregator.strategies.norm_clipping import NormClipping
from concilia_aggregator.strategies.ordered import Ordered
from concilia_aggregator.strategies.personal import PersonalAvg
from concilia_aggregator.strategies.qfedavg import QFedAvg
from concilia_aggregator.strategies.scaffold import Scaffold
from concilia_aggregator.strategies.trimmed_mean import TrimmedMean

GROUP = "concilia.strategies"
RATE, BETA1, BETA2, TAU = 0.01, 0.9, 0.99, 1e-3
"""Usual values of adaptive server optimisers (Reddi et al. 2021, section 5, and its code)."""


class StrategyUnknown(ValueError):
    """No package here brings the strategy that a job names, or it does not take the job's parameters."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a strategy goes by beside its own parameters: hospitals' local training, how many hospitals there are, and
    which round it is, by which buckets are drawn."""

    local: LocalTraining = field(default_factory=LocalTraining)
    hospitals: int = 0
    round: int = 0


def make(spec: StrategySpec, setting: Setting | None = None, *, ordered: bool = False) -> Strategy:
    """The strategy that a job names; `ordered` as it was computed before means were exact (see `Ordered`).

    Raises `StrategyUnknown`.
    """
    if not isinstance(spec.name, StrategyName):
        return _of_others(spec.name, spec.parameters or {})
    setting = setting or Setting()
    found = _made(spec, setting)
    if ordered and isinstance(found, FedAvg):
        return Ordered(found)
    if spec.mixing is None:
        return found
    hostile = Hostile(_or(spec.hostile, SHARE))
    mixing = (
        NearestNeighbours(hostile)
        if spec.mixing is Mixing.NEAREST_NEIGHBOURS
        else Bucketing(spec.bucket or 2, setting.round)
    )
    assert isinstance(found, Blockwise | Weighing), "the spec mixes before no other"
    return Mixed(mixing, found)


def installed() -> list[str]:
    """Names of the strategies that other packages bring here."""
    return sorted(entry_points(group=GROUP).names)


def _made(spec: StrategySpec, setting: Setting) -> Strategy:
    hostile = Hostile(_or(spec.hostile, SHARE))
    rate, beta1 = _or(spec.server_rate, RATE), _or(spec.beta1, BETA1)
    beta2, tau, local = _or(spec.beta2, BETA2), _or(spec.tau, TAU), setting.local
    makers: dict[str, Callable[[], Strategy]] = {
        StrategyName.FEDAVG: FedAvg,
        StrategyName.FEDPROX: lambda: FedProx(spec.proximal_mu),
        StrategyName.FEDBUFF: FedBuff,
        StrategyName.FEDBN: lambda: PersonalAvg(Personal.NORMALISATION),
        StrategyName.FEDREP: lambda: PersonalAvg(Personal.HEAD),
        StrategyName.MEDIAN: Median,
        StrategyName.TRIMMED_MEAN: lambda: TrimmedMean(spec.trim),
        StrategyName.BULYAN: lambda: Bulyan(hostile),
        StrategyName.NORM_CLIPPING: lambda: Combined(NormClipping(spec.radius)),
        StrategyName.DP_FEDAVG: lambda: _noised(spec),
        StrategyName.GEOMETRIC_MEDIAN: lambda: Combined(GeometricMedian()),
        StrategyName.KRUM: lambda: Combined(MultiKrum(hostile, one=True)),
        StrategyName.MULTI_KRUM: lambda: Combined(MultiKrum(hostile)),
        StrategyName.CENTRED_CLIPPING: lambda: Combined(CentredClipping(spec.radius)),
        StrategyName.FLTRUST: lambda: Combined(FLTrust()),
        StrategyName.FEDAVGM: lambda: Optimised(FedAvgM(_or(spec.server_rate, 1.0), beta1)),
        StrategyName.FEDADAM: lambda: Optimised(FedAdam(rate, beta1, beta2, tau)),
        StrategyName.FEDYOGI: lambda: Optimised(FedYogi(rate, beta1, beta2, tau)),
        StrategyName.FEDADAGRAD: lambda: Optimised(FedAdagrad(rate, _or(spec.beta1, 0.0), beta2, tau)),
        StrategyName.SCAFFOLD: lambda: Scaffold(setting.hospitals),
        StrategyName.FEDNOVA: lambda: Combined(FedNova()),
        StrategyName.CLASS_BALANCED: lambda: Combined(ClassBalanced(), class_counts=True),
        StrategyName.QFEDAVG: lambda: Combined(QFedAvg(_or(spec.q, 1.0), local.learning_rate), first_loss=True),
    }
    return makers[spec.name]()


def _noised(spec: StrategySpec) -> DPFedAvg:
    assert spec.central is not None, "the spec refuses it without"
    return DPFedAvg(spec.central.radius, spec.central.noise)


def _of_others(name: str, parameters: Mapping[str, float]) -> Strategy:
    found = tuple(entry_points(group=GROUP, name=name))
    if len(found) != 1:
        known = ", ".join(installed()) or "none"
        raise StrategyUnknown(f"{len(found)} packages here bring the strategy '{name}'; there are: {known}")
    try:
        made = found[0].load()(parameters)
    except (KeyError, TypeError, ValueError) as error:
        raise StrategyUnknown(f"the strategy '{name}' does not take these parameters: {error}") from error
    if not isinstance(made, Blockwise | Weighing | Stateful):  # noise of others is in no account of what it costs
        raise StrategyUnknown(f"'{name}' is no strategy")
    return made


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value

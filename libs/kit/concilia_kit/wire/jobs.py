"""Jobs and rounds as the aggregator takes and tells them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, JsonValue, model_validator

from concilia_kit import digests
from concilia_kit.classification import LESIONS, Classified, Turns
from concilia_kit.digests import Digest, JobId
from concilia_kit.signing import Address
from concilia_kit.strict import NO_TEXT, Integer, IntegerOrNone, Number, NumberOrNone, Text, Truth
from concilia_kit.wire.base import Wire
from concilia_kit.wire.calibration import Calibrated
from concilia_kit.wire.encoding import PLAIN, Encoding
from concilia_kit.wire.training import Architecture, Evaluation, LocalTraining, Optimizer, Progress


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
    FEDBUFF = "fedbuff"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    NORM_CLIPPING = "norm_clipping"
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


def _is_none(value: object) -> bool:
    return value is None


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
        exclude_if=_is_none,
        description="Krum, Bulyan, mixing: share of updates taken for hostile; 0.2 by default",
    )
    radius: NumberOrNone = Field(
        default=None,
        gt=0,
        le=1e12,
        exclude_if=_is_none,
        description="clipping: longest difference; the median of the lengths by default",
    )
    mixing: Mixing | None = Field(default=None, exclude_if=_is_none, description="before a robust strategy")
    bucket: IntegerOrNone = Field(
        default=None, ge=2, le=1000, exclude_if=_is_none, description="bucketing: updates of a bucket; 2 by default"
    )
    server_rate: NumberOrNone = Field(
        default=None,
        gt=0,
        le=1000,
        exclude_if=_is_none,
        description="server optimisers: learning rate; 1 for FedAvgM, 0.01 for the others by default",
    )
    beta1: NumberOrNone = Field(
        default=None, ge=0, lt=1, exclude_if=_is_none, description="server optimisers: momentum; 0.9 by default"
    )
    beta2: NumberOrNone = Field(
        default=None, ge=0, lt=1, exclude_if=_is_none, description="FedAdam, FedYogi: 0.99 by default"
    )
    tau: NumberOrNone = Field(
        default=None, gt=0, le=1000, exclude_if=_is_none, description="adaptive optimisers: 0.001 by default"
    )
    q: NumberOrNone = Field(
        default=None, ge=0, le=100, exclude_if=_is_none, description="q-FedAvg: 1 by default; 0 is no fairness"
    )
    root: Address | None = Field(
        default=None, exclude_if=_is_none, description="FLTrust: the hospital whose update is trusted"
    )
    parameters: dict[ParameterName, Parameter] | None = Field(
        default=None, max_length=32, exclude_if=_is_none, description="of a strategy that another package brings"
    )

    @property
    def asynchronous(self) -> bool:
        """Whether hospitals train at their own pace, and work that is late counts in a later round."""
        return self.name is StrategyName.FEDBUFF

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mixing is not None and self.name not in MIXABLE:
            raise ValueError("mixing goes before a robust strategy")
        if self.name is StrategyName.FLTRUST and self.root is None:
            raise ValueError("FLTrust needs a root, the address of the hospital whose update is trusted")
        if self.parameters and isinstance(self.name, StrategyName):
            raise ValueError("'parameters' are of strategies that other packages bring")
        return self


class Schedule(Wire):
    """How the learning rate, and what is trained, go over a job's rounds."""

    whole_job: Truth = Field(
        default=False, description="one cosine over all rounds to nothing, in place of one a round to a tenth"
    )
    warm_up: Number = Field(
        default=0.0, ge=0, le=1, description="share of the first round over which the rate rises from nothing"
    )
    head_rounds: Integer = Field(
        default=0, ge=0, le=10_000, description="first rounds in which the last layer alone is trained"
    )


EACH_ROUND_ALIKE = Schedule()


class Recording(StrEnum):
    """How the ledger records a job's updates: each by itself, or a round's under one Merkle root, for large cohorts."""

    EACH = "each"
    MERKLE = "merkle"


SENSITIVITY = 0.9


class JobSpec(Wire):
    """What an administrator asks for."""

    name: Text = Field(min_length=1, max_length=100)
    architecture: Architecture = Architecture.RESNET50
    initial: Digest = Field(description="artifact of the initial weights")
    strategy: Strategy = Strategy()
    rounds: Integer = Field(default=3, ge=1, le=10_000)
    quorum: Integer = Field(default=1, ge=1, le=100_000, description="updates that a round needs; FedBuff's buffer")
    deadline_seconds: Integer = Field(default=3600, ge=5, le=30 * 86400, description="from opening a round")
    over_selection: NumberOrNone = Field(
        default=None,
        ge=1,
        le=100,
        allow_inf_nan=False,
        description="ask so many times the quorum, chosen anew each round, and close a round with its first quorum; "
        "without it, all who are there are asked and waited for",
    )
    target: NumberOrNone = Field(default=None, gt=0, le=1, description="pooled balanced accuracy that ends the job")
    seed: Integer = Field(default=0, ge=0, lt=2**32)
    local: LocalTraining = LocalTraining()
    evaluation: Evaluation = Evaluation()
    evaluate_every: Integer = Field(
        default=1, ge=1, le=10_000, description="closed rounds; the last is always evaluated"
    )
    recording: Recording = Recording.EACH
    encoding: Encoding = Field(default=PLAIN, description="how nodes that can encode their updates")
    schedule: Schedule = Field(
        default=EACH_ROUND_ALIKE, exclude_if=lambda schedule: schedule == EACH_ROUND_ALIKE, description="over rounds"
    )
    classification: Classified = LESIONS
    calibrate: Truth = Field(
        default=False,
        exclude_if=lambda calibrate: not calibrate,
        description="find a temperature and thresholds on held-out lesions for the model that is published",
    )
    sensitivity: Number = Field(
        default=SENSITIVITY,
        ge=0.5,
        le=1,
        exclude_if=lambda wanted: wanted == SENSITIVITY,
        description="share of the critical class that the threshold is to find; where it calibrates",
    )

    @property
    def closes_at_quorum(self) -> bool:
        """Whether a round waits for its quorum only, whoever that is, and not for all who were asked."""
        return self.over_selection is not None or self.strategy.asynchronous

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if self.local.optimizer is not Optimizer.SGD and self.strategy.name in BY_REACH:
            raise ValueError(f"optimizer must be sgd: {self.strategy.name} goes by how far plain steps reach")
        return self

    @model_validator(mode="after")
    def _calibration(self) -> Self:
        if self.calibrate and self.strategy.name in OWN_TENSORS:
            raise ValueError(
                f"no calibrate: {self.strategy.name} has each hospital evaluate a network of its own, which says "
                "nothing of how to read the published one"
            )
        if self.evaluation.flips and self.classification.turns is Turns.NONE:
            raise ValueError(f"no flips: pictures of '{self.classification.name}' may not be turned")
        return self

    @model_validator(mode="after")
    def _asynchronous(self) -> Self:
        if self.strategy.asynchronous and self.over_selection is not None:
            raise ValueError("fedbuff asks all hospitals and closes a round with its first quorum: no over_selection")
        if self.strategy.asynchronous and self.encoding.feedback:
            raise ValueError(
                f"fedbuff cannot use {self.encoding}: what it leaves out is of a base that late work has left behind; "
                "take none or float16, with +zstd or not"
            )
        return self


class JobManifest(Wire):
    """What a job is, once and for all: the SHA-256 of this in canonical JSON (RFC 8785) is the job's id on the ledger.

    So the ledger binds what was asked for, with every hyperparameter and the initial weights' digest, and the code that
    was to carry it out, and whoever has a manifest can check that it is the job's. `spec` and `created_at` are kept as
    they were written then, not as later versions would write them, which would give another id.
    """

    spec: dict[str, JsonValue] = Field(description="the job's `JobSpec` as JSON, all fields, in the form of its day")
    created_by: Address
    created_at: str = Field(description="ISO 8601, with its offset from UTC", max_length=40)
    code: str = Field(description="version of the aggregator that took the job", max_length=200)
    salt: str = Field(pattern="^[0-9a-f]{32}$", description="16 random bytes: no two jobs are the same")

    def id(self) -> JobId:
        """The id of the job that this is the manifest of."""
        return digests.of_json(self.model_dump(mode="json"))


class Phase(StrEnum):
    """Where a job stands; the phases from OPENING to EVALUATING repeat each round."""

    BASELINE = "baseline"
    OPENING = "opening"
    TRAINING = "training"
    FOLDING = "folding"
    EVALUATING = "evaluating"
    PUBLISHING = "publishing"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Scores(Wire):
    """Metrics of a confusion matrix; None where a class has no images.

    `recall` and `auc` are in the order of the job's classes; `melanoma_recall` is of the critical one, whichever that
    is, and None where none is.
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    loss: float
    recall: tuple[float | None, ...]
    melanoma_recall: float | None
    auc: tuple[float | None, ...]


class SiteScores(Wire):
    """One site's held-out metrics."""

    hospital: Address
    site: str
    scores: Scores


class Rejected(Wire):
    """An update that was left out, and why."""

    hospital: Address
    digest: Digest
    reason: str


class RoundView(Wire):
    """A round as the aggregator knows it. Round 0 is the evaluation of the initial model.

    Seconds: `training` the longest local training, `moving` the sum of downloads and uploads, `chain` the sum of
    transaction latencies, each transaction once, however many orders it carried, by the one that waited longest,
    `folding` screening and averaging.
    """

    round: int
    base: Digest | None
    model: Digest | None
    opened_at: AwareDatetime | None
    closed_at: AwareDatetime | None
    deadline: int | None
    accepted: int
    rejected: tuple[Rejected, ...]
    pooled: Scores | None
    confusion: tuple[tuple[int, ...], ...] | None
    sites: tuple[SiteScores, ...]
    overlapping_lesions: int | None
    seconds_training: float
    seconds_moving: float
    seconds_chain: float
    seconds_folding: float
    bytes_moved: int
    progress: dict[Address, Progress]
    calibrated: Calibrated | None = Field(default=None, exclude_if=_is_none)


class JobView(Wire):
    """A job as the aggregator knows it. A job that is `paused` ends its open round and opens no other.

    `manifest` is None for jobs from before there were manifests, whose ids are random.
    """

    id: JobId
    spec: JobSpec
    phase: Phase
    paused: bool
    round: int
    detail: str
    created_at: AwareDatetime
    created_by: Address
    model: Digest | None
    rounds: tuple[RoundView, ...]
    manifest: JobManifest | None = None

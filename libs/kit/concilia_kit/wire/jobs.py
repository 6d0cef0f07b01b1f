"""Jobs and rounds as the aggregator takes and tells them."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import AwareDatetime, Field, JsonValue, model_validator

from concilia_kit import digests
from concilia_kit.classification import LESIONS, Classified, Turns
from concilia_kit.digests import Digest, JobId
from concilia_kit.signing import Address
from concilia_kit.strict import Integer, IntegerOrNone, Number, NumberOrNone, Text, Truth
from concilia_kit.wire.base import Wire, is_none
from concilia_kit.wire.calibration import Calibrated
from concilia_kit.wire.encoding import PLAIN, Encoding, EncodingName
from concilia_kit.wire.masking import SecureAggregation
from concilia_kit.wire.privacy import Privacy, Spent
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.strategy import BY_REACH, MIXABLE, OF_SUMS, OWN_TENSORS, Strategy, StrategyName
from concilia_kit.wire.training import Architecture, ArchitectureName, Balance, Evaluation, LocalTraining, Optimizer


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
    # Left out where it says nothing: jobs from before there was such keep their ids.
    statistics_rounds: IntegerOrNone = Field(
        default=None,
        ge=1,
        le=10_000,
        exclude_if=lambda rounds: rounds is None,
        description="first rounds in which batch normalisation goes by each batch's own statistics; after them by the "
        "global model's, which then stay (FixBN, Zhong et al. 2023). Without it, always by each batch's own",
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
    architecture: ArchitectureName = Architecture.RESNET50
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
    target: NumberOrNone = Field(
        default=None,
        gt=0,
        le=1,
        description="pooled balanced accuracy, or what its classification is judged by first, that ends the job",
    )
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
    own_shares: Truth = Field(
        default=False,
        exclude_if=lambda own: not own,
        description="evaluate each hospital's pictures by how often each class comes there (`class_shares`)",
    )
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
    secure: SecureAggregation | None = Field(
        default=None, exclude_if=is_none, description="have the aggregator see sums of updates, and no single one"
    )
    privacy: Privacy | None = Field(
        default=None, exclude_if=is_none, description="have hospitals train with differential privacy"
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
        if self.own_shares and self.local.balance is not Balance.LOGIT:
            raise ValueError(
                f"no own_shares with balance {self.local.balance}: trained with balance logit, networks say what "
                "speaks for a class beside how often it comes"
            )
        if self.evaluation.class_counts is not None:
            raise ValueError("no class_counts: they are what hospitals evaluated, by own_shares")
        if self.evaluation.flips and self.classification.turns is Turns.NONE:
            raise ValueError(f"no flips: pictures of '{self.classification.name}' may not be turned")
        return self

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if self.secure is None:
            return self
        if self.strategy.name is StrategyName.DP_FEDAVG:
            raise ValueError(
                "no secure aggregation with dp_fedavg: noise that the aggregator adds goes onto updates that it sees; "
                "take 'privacy', with which hospitals add their own"
            )
        if self.secure.group is None and self.strategy.name not in OF_SUMS:
            raise ValueError(
                f"no secure aggregation with {self.strategy.name}, which must see single updates: take one that goes "
                "by their sum, or with 'group' a robust strategy over groups' sums"
            )
        if self.secure.group is not None and (self.strategy.name not in MIXABLE or self.strategy.mixing is not None):
            raise ValueError(f"no groups with {self.strategy.name}: they are for robust strategies, without mixing")
        if not self.encoding.plain:
            raise ValueError(
                f"no secure aggregation of updates as {self.encoding}: masks are on whole numbers of 32 bits"
            )
        if self.over_selection is not None:
            raise ValueError("no secure aggregation with over_selection: who is in the sum must be settled")
        return self

    @model_validator(mode="after")
    def _central(self) -> Self:
        if self.strategy.name is not StrategyName.DP_FEDAVG:
            return self
        if self.privacy is not None:
            raise ValueError("no dp_fedavg with privacy: noise is the hospitals' own or the aggregator's, and not both")
        if self.encoding.zstd or self.encoding.name is EncodingName.TOP_K:
            raise ValueError(
                "no encoding with dp_fedavg but none, float16 and int8: how long "
                f"{self.encoding} makes an update tells of it, and all see that"
            )
        if self.schedule.head_rounds:
            raise ValueError(
                "no head_rounds with dp_fedavg, whose noise goes onto all that a model's file holds: take an adapter"
            )
        return self

    @model_validator(mode="after")
    def _privacy(self) -> Self:
        if self.privacy is None:
            return self
        if self.local.balance is not Balance.NONE:
            raise ValueError(
                "balance must be none with privacy: how many pictures a class has would show in the update"
            )
        if self.local.mixup:
            raise ValueError("no mixup with privacy: a gradient must be one lesion's and no other's")
        if self.strategy.name == StrategyName.QFEDAVG or self.local.first_loss:
            raise ValueError("no privacy with qfedavg, which goes by the loss on training pictures")
        if self.strategy.name == StrategyName.CLASS_BALANCED or self.local.class_counts:
            raise ValueError("no privacy with class_balanced, which goes by how many training pictures a class has")
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
    UNMASKING = "unmasking"
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
    calibrated: Calibrated | None = Field(default=None, exclude_if=is_none)
    privacy: dict[Address, Spent] = Field(
        default={}, exclude_if=lambda spent: not spent, description="what hospitals say that it cost their lesions"
    )


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

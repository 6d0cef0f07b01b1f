"""Training as it is asked for and reported: tasks to nodes, and what nodes say back.

A task carries ids, hashes and hyperparameters, never arrays. A report carries counts and seconds, never a file name,
a lesion or a label row.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from concilia_kit import digests
from concilia_kit.classification import FEWEST, LESIONS, MOST, Classified
from concilia_kit.digests import Digest, JobId
from concilia_kit.signing import Signature, TaskOrder
from concilia_kit.strict import NO_TEXT, Integer, IntegerOrNone, Number, Truth
from concilia_kit.wire.base import Wire
from concilia_kit.wire.calibration import Calibration
from concilia_kit.wire.encoding import PLAIN, Encoded, Encoding
from concilia_kit.wire.masking import Masked, SecureAggregation, Survivors
from concilia_kit.wire.privacy import CentralNoise, Privacy, Spent

TRAIN_TASK = "concilia.train"
EVALUATE_TASK = "concilia.evaluate"
UNMASK_TASK = "concilia.unmask"
SCORE_BINS = 32
FINAL_RATE = 0.1
"""Of the learning rate, at the end of a round, where a round's schedule is its own."""
MAX_STALENESS = 20
"""Rounds by which work of an asynchronous job may be late and still count (Nguyen et al. 2022, section 4)."""

Count = Annotated[int, Field(ge=0, lt=2**53), NO_TEXT]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), NO_TEXT]
Finite = Annotated[float, Field(allow_inf_nan=False), NO_TEXT]

_Item = TypeVar("_Item")
OfClasses = Annotated[tuple[_Item, ...], Field(min_length=FEWEST, max_length=MOST)]
_OfBins = Annotated[tuple[_Item, ...], Field(min_length=SCORE_BINS, max_length=SCORE_BINS)]


_GROUPED = "_gn"


class Architecture(StrEnum):
    """torchvision's names of the architectures a job may train. Those on `_gn` have group normalisation where
    torchvision's have batch normalisation, which makes one picture's gradient depend on the batch's others."""

    RESNET50 = "resnet50"
    RESNET18 = "resnet18"
    MOBILENET_V2 = "mobilenet_v2"
    EFFICIENTNET_B0 = "efficientnet_b0"
    CONVNEXT_TINY = "convnext_tiny"
    RESNET18_GN = "resnet18_gn"
    MOBILENET_V2_GN = "mobilenet_v2_gn"

    @property
    def torchvision(self) -> str:
        """torchvision's own name of it, without what is said of its normalisation."""
        return self.value.removesuffix(_GROUPED)

    @property
    def grouped(self) -> bool:
        """Whether it has group normalisation in place of batch normalisation."""
        return self.value.endswith(_GROUPED)


TIMM = "timm:"
_TIMM_NAME = r"^timm:[a-z0-9_.]{1,60}$"
TimmName = Annotated[str, Field(pattern=_TIMM_NAME, description="a network of timm, where its extra is installed")]
"""`timm:` and timm's own name of a network, as in `timm:resnet10t`."""
ArchitectureName = Architecture | TimmName


def architecture_of(name: str) -> ArchitectureName:
    """The architecture of a name. Whether timm has a network of that name is seen where it is built. Raises
    `ValueError`."""
    if re.fullmatch(_TIMM_NAME, name):
        return name
    try:
        return Architecture(name)
    except ValueError as error:
        raise ValueError(f"'{name}' is none of {', '.join(Architecture)}, and no name as timm:resnet10t") from error


class Balance(StrEnum):
    """How local training meets class imbalance: weights in the loss, weights in the sampling, logits adjusted by each
    hospital's own class shares (Menon et al. 2021; FedLC, Zhang et al. 2022), or not at all."""

    LOSS = "loss"
    SAMPLING = "sampling"
    LOGIT = "logit"
    NONE = "none"


class Optimizer(StrEnum):
    """What takes local steps: SGD with momentum, or Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    SGD = "sgd"
    ADAMW = "adamw"


class Trained(StrEnum):
    """What local training moves: the whole network, or its last layer alone."""

    ALL = "all"
    HEAD = "head"


class Statistics(StrEnum):
    """What batch normalisation goes by while a hospital trains: each batch's own statistics, or the model's, which then
    stay as they came."""

    BATCH = "batch"
    KEPT = "kept"


class Personal(StrEnum):
    """Tensors that a hospital keeps to itself and goes on with from round to round: none, those of normalisation
    (FedBN), or those of the last layer (FedRep)."""

    NOTHING = "nothing"
    NORMALISATION = "normalisation"
    HEAD = "head"


class LocalTraining(Wire):
    """Hyperparameters of one hospital's part of a round."""

    epochs: Integer = Field(default=1, ge=1, le=100)
    batch_size: Integer = Field(default=32, ge=2, le=1024)
    learning_rate: Number = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    momentum: Number = Field(default=0.9, ge=0, lt=1)
    weight_decay: Number = Field(default=1e-4, ge=0, le=1)
    image_size: Integer = Field(default=224, ge=32, le=1024, description="side of the square input, pixels")
    max_images: IntegerOrNone = Field(
        default=None, ge=1, lt=2**53, description="cap on training images a site and round"
    )
    balance: Balance = Balance.LOSS
    augment: Truth = True
    proximal_mu: Number = Field(default=0.0, ge=0, le=100, description="FedProx's mu; set by the strategy")
    # Left out where they say nothing: jobs from before there were such keep their ids.
    control: Truth = Field(
        default=False, exclude_if=lambda control: not control, description="SCAFFOLD's variates; set by the strategy"
    )
    personal: Personal = Field(
        default=Personal.NOTHING,
        exclude_if=lambda personal: personal is Personal.NOTHING,
        description="which tensors stay a hospital's own; set by the strategy",
    )
    first_loss: Truth = Field(
        default=False,
        exclude_if=lambda first: not first,
        description="measure the model's loss before training it; set by the strategy",
    )
    class_counts: Truth = Field(
        default=False,
        exclude_if=lambda told: not told,
        description="tell how many training images there are of each class; set by the strategy",
    )
    optimizer: Optimizer = Field(
        default=Optimizer.SGD,
        exclude_if=lambda optimizer: optimizer is Optimizer.SGD,
        description="AdamW has no use for `momentum`",
    )
    label_smoothing: Number = Field(
        default=0.0, ge=0, le=0.5, exclude_if=lambda share: not share, description="share spread over all classes"
    )
    mixup: Number = Field(
        default=0.0,
        ge=0,
        le=10,
        exclude_if=lambda alpha: not alpha,
        description="alpha of the Beta distribution by which pairs of images are mixed (Zhang et al. 2018)",
    )
    rate_start: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        exclude_if=lambda share: share == 1.0,
        description="share of the learning rate at the round's beginning; set by the schedule",
    )
    rate_end: Number = Field(
        default=FINAL_RATE,
        ge=0,
        le=1,
        exclude_if=lambda share: share == FINAL_RATE,
        description="and at its end, half a cosine later (Loshchilov and Hutter, 2017); set by the schedule",
    )
    warm_up: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: not share,
        description="share of the round's steps over which the rate rises from nothing; set by the schedule",
    )
    trained: Trained = Field(
        default=Trained.ALL,
        exclude_if=lambda trained: trained is Trained.ALL,
        description="what moves; set by the schedule",
    )
    statistics: Statistics = Field(
        default=Statistics.BATCH,
        exclude_if=lambda statistics: statistics is Statistics.BATCH,
        description="what batch normalisation goes by; set by the schedule",
    )


class Evaluation(Wire):
    """How a global model is evaluated at each site."""

    batch_size: Integer = Field(default=64, ge=1, le=1024)
    max_images: IntegerOrNone = Field(default=None, ge=1, lt=2**53, description="cap on held-out images a site")
    flips: Truth = Field(
        default=False,
        exclude_if=lambda flips: not flips,
        description="logits are the mean over a picture and its mirror images and half turn, as far as the "
        "classification lets pictures be turned",
    )
    class_counts: OfClasses[Count] | None = Field(
        default=None,
        exclude_if=lambda counts: counts is None,
        description="all hospitals' pictures by class, which each one's own shares are held against; set by the job's "
        "`own_shares`",
    )


class TrainTask(Wire):
    """Train one round at one node. `base` and `architecture` pin what is trained."""

    job: JobId
    round: int = Field(ge=1)
    architecture: ArchitectureName
    base: Digest
    seed: int = Field(ge=0, lt=2**63)
    deadline: int
    local: LocalTraining
    # Left out where it is none: a node from before there were encodings drops a task with a member it does not know.
    encoding: Encoding = Field(default=PLAIN, exclude_if=lambda encoding: encoding.plain)
    # Likewise. Work that is late is not thrown away, but told in a later round, with its staleness.
    asynchronous: bool = Field(default=False, exclude_if=lambda asynchronous: not asynchronous)
    classification: Classified = LESIONS
    secure: SecureAggregation | None = Field(default=None, exclude_if=lambda secure: secure is None)
    privacy: Privacy | None = Field(default=None, exclude_if=lambda privacy: privacy is None)
    central: CentralNoise | None = Field(default=None, exclude_if=lambda central: central is None)


class UnmaskTask(Wire):
    """Agree to who is in a round's sum, and once enough others do, reveal the shares that unmask it."""

    job: JobId
    round: int = Field(ge=1)
    deadline: int
    survivors: Survivors
    classification: Classified = LESIONS


class EvaluateTask(Wire):
    """Evaluate a model on a node's held-out lesions, with what the hospital keeps to itself. Round 0 is the initial
    model."""

    job: JobId
    round: int = Field(ge=0)
    architecture: ArchitectureName
    model: Digest
    seed: int = Field(ge=0, lt=2**63)
    image_size: int = Field(ge=32, le=1024)
    evaluation: Evaluation
    personal: Personal = Field(default=Personal.NOTHING, exclude_if=lambda personal: personal is Personal.NOTHING)
    classification: Classified = LESIONS
    calibrate: bool = Field(default=False, exclude_if=lambda calibrate: not calibrate)


Task = TrainTask | EvaluateTask | UnmaskTask


def name_of(task: Task) -> str:
    """The name that a task goes by in queues."""
    match task:
        case TrainTask():
            return TRAIN_TASK
        case EvaluateTask():
            return EVALUATE_TASK
        case UnmaskTask():
            return UNMASK_TASK


def order_of(task: Task) -> TaskOrder:
    """What a coordinator signs who asks for a task."""
    return TaskOrder(name=name_of(task), digest=digests.of_json(task.model_dump(mode="json")))


class Assignment(Wire):
    """A task that a hospital is asked for now, in the words that its queue has, signed by who asks (`order_of`)."""

    name: str = Field(description=f"'{TRAIN_TASK}', '{EVALUATE_TASK}' or '{UNMASK_TASK}'", max_length=64)
    task: Task
    signature: Signature


class UpdateMetrics(Wire):
    """What a node measured while it made an update; its canonical JSON's digest is part of what the node signs."""

    # Measured on training pictures, without noise: not said with differential privacy, wherever its noise is added.
    loss: Finite | None = Field(default=None, exclude_if=lambda loss: loss is None)
    accuracy: Annotated[float, Field(ge=0, le=1), NO_TEXT] | None = Field(
        default=None, exclude_if=lambda accuracy: accuracy is None
    )
    images: Count
    lesions: Count
    skipped_images: Count
    epochs: Count
    seconds_download: Seconds
    seconds_training: Seconds
    seconds_upload: Seconds
    bytes_download: Count
    bytes_upload: Count
    # Left out of plain updates, so that their digests are what they were before there were encodings.
    encoded: Encoded | None = Field(default=None, exclude_if=lambda encoded: encoded is None)
    # Rounds since the one that was trained for, as the update's file says too. Likewise left out where there are none.
    staleness: Count = Field(default=0, exclude_if=lambda staleness: not staleness)
    # What strategies go by that look at more than samples; left out where a node does not say it.
    reach: Finite | None = Field(
        default=None,
        exclude_if=lambda reach: reach is None,
        description="the sum of what each gradient's weight came to: for plain SGD, steps times learning rate",
    )
    first_loss: Finite | None = Field(
        default=None,
        exclude_if=lambda loss: loss is None,
        description="of the base on the hospital's training images, before it trained",
    )
    class_counts: OfClasses[Count] | None = Field(
        default=None,
        exclude_if=lambda counts: counts is None,
        description="the hospital's training images of each class, those beyond a round's cap too",
    )
    masked: Masked | None = Field(default=None, exclude_if=lambda masked: masked is None)
    privacy: Spent | None = Field(default=None, exclude_if=lambda spent: spent is None)


class EvaluationReport(Wire):
    """Counts from one site's held-out lesions; sums over sites are exact.

    `confusion[t][p]`: images of class t predicted as p. `positives[c][b]` and `negatives[c][b]`: images that are (not)
    of class c whose probability of c fell into bin b of `SCORE_BINS` equal bins over [0, 1]. Classes are those of the
    job's classification, in its order.
    """

    job: JobId
    round: Integer = Field(ge=0, lt=2**32)
    model: Digest
    confusion: OfClasses[OfClasses[Count]]
    positives: OfClasses[_OfBins[Count]]
    negatives: OfClasses[_OfBins[Count]]
    loss_sum: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_TEXT]
    images: Count
    lesions: Count
    overlapping_lesions: Count
    skipped_images: Count
    seconds: Seconds
    calibration: Calibration | None = Field(
        default=None,
        exclude_if=lambda calibration: calibration is None,
        description="where the task asks to calibrate, and there are images enough",
    )

    @model_validator(mode="after")
    def _sums(self) -> Self:
        classes = len(self.confusion)
        if {*map(len, self.confusion), len(self.positives), len(self.negatives)} != {classes}:
            raise ValueError("confusion, positives and negatives must have the same classes")
        if sum(map(sum, self.confusion)) != self.images:
            raise ValueError("confusion must sum to images")
        for c in range(classes):
            if sum(self.positives[c]) != sum(self.confusion[c]):
                raise ValueError("positives must agree with the confusion matrix")
            if sum(self.positives[c]) + sum(self.negatives[c]) != self.images:
                raise ValueError("positives and negatives must sum to images")
        if self.calibration is not None:
            correct = sum(row[c] for c, row in enumerate(self.confusion))
            if (self.calibration.images, self.calibration.correct) != (self.images, correct):
                raise ValueError("calibration must be of all images, and agree with the confusion matrix")
        return self

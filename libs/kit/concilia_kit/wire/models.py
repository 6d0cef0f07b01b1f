"""Artifacts, model versions and predictions as the model service tells them."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from concilia_kit.classification import FEWEST, LESIONS, MOST, Classified
from concilia_kit.digests import Digest, JobId
from concilia_kit.signing import Address
from concilia_kit.strict import Integer
from concilia_kit.wire.adapter import AdapterKind
from concilia_kit.wire.base import Wire
from concilia_kit.wire.calibration import Use
from concilia_kit.wire.training import ArchitectureName

NOTICE = "Research software, no medical device: not for diagnosis."


class Weights(StrEnum):
    """Where initial weights come from."""

    IMAGENET = "imagenet"
    FILE = "file"
    RANDOM = "random"


class InitialModelRequest(Wire):
    """Make initial weights for an architecture; `file` names an artifact: a whole model, one without its head, or an
    adapter, which is merged with its trunk."""

    architecture: ArchitectureName
    weights: Weights
    file: Digest | None = None
    seed: Integer = Field(default=0, ge=0, lt=2**32)
    classes: Integer = Field(
        default=len(LESIONS.classes),
        ge=FEWEST,
        le=MOST,
        exclude_if=lambda classes: classes == len(LESIONS.classes),
        description="how many its head tells apart",
    )
    adapter: AdapterKind | None = Field(
        default=None,
        exclude_if=lambda kind: kind is None,
        description="also make an adapter over them, which is what a job then trains: 'norms', or 'lora:8'",
    )

    @model_validator(mode="after")
    def _file_with_file(self) -> Self:
        if (self.weights is Weights.FILE) != (self.file is not None):
            raise ValueError("'file' goes with weights 'file', and only with it")
        return self


class InitialModel(Wire):
    """Initial weights as an artifact; `origin` says in words where they came from, and is stored with them.

    Where an adapter was asked for, it is what `digest` names and counts are of, and `trunk` names the whole model.
    """

    digest: Digest
    architecture: ArchitectureName
    origin: str
    loaded_tensors: int
    fresh_tensors: int
    adapter: AdapterKind | None = Field(default=None, exclude_if=lambda kind: kind is None)
    trunk: Digest | None = Field(default=None, exclude_if=lambda trunk: trunk is None)


class Artifact(Wire):
    """A stored file: SHA-256 of its bytes, its size in bytes, who brought it; of an adapter also its trunk and kind, as
    the file itself names them. One that is `secret`, as its file says, no hospital reads that did not bring it."""

    digest: Digest
    size: int
    owner: Address
    tensors: int
    origin: str | None = None
    trunk: Digest | None = Field(default=None, exclude_if=lambda trunk: trunk is None)
    adapter: AdapterKind | None = Field(default=None, exclude_if=lambda kind: kind is None)
    secret: bool = Field(default=False, exclude_if=lambda secret: not secret)


class ArtifactCheck(Wire):
    """Whether a stored file still hashes to its digest. One that does not is put aside, and told so once."""

    digest: Digest
    intact: bool
    checked_at: AwareDatetime


class StoredKind(StrEnum):
    """What a stored file is, by what the ledger says of it."""

    INITIAL = "initial"
    """The base of a job's first round, and nothing more."""
    GLOBAL = "global"
    """What a round ended with or a later one began with, or a published model."""
    TRUNK = "trunk"
    """What an adapter goes over that is kept, and no round's base or result itself."""
    UPDATE = "update"
    """A hospital's update, and nothing else."""
    SPARE = "spare"
    """Named by no record, and made by the service or brought by an administrator or coordinator: for a job to come."""
    ORPHAN = "orphan"
    """Named by no record, and brought by hospitals alone."""
    UNFINISHED = "unfinished"
    """The part of an upload that has come."""
    QUARANTINED = "quarantined"
    """Put aside because its bytes had changed."""


class Stored(Wire):
    """How many files of a kind are stored, and their bytes together."""

    kind: StoredKind
    files: int
    bytes: int


class Due(Wire):
    """An artifact that the policy deletes next; `brought_at` is when somebody last brought it."""

    digest: Digest
    kind: StoredKind
    size: int
    brought_at: AwareDatetime


class StorageReport(Wire):
    """What lies in the artifact store, what the policy deletes next, and what it has deleted so far.

    Days of None are for ever. `ledger_read_at` is how old the knowledge is by which files have their kind; None where
    the ledger was never read, and then nothing is due. `due` has the first of the `due_files`.
    """

    stored: tuple[Stored, ...]
    free_bytes: int
    keep_updates_days: float | None
    keep_orphans_days: float | None
    ledger_read_at: AwareDatetime | None
    due_files: int
    due_bytes: int
    due: tuple[Due, ...]
    removed_files: int
    removed_bytes: int


class ModelVersion(Wire):
    """A published model with its lineage: base and global digest of each closed round, in order."""

    digest: Digest
    job: JobId
    architecture: ArchitectureName
    image_size: int
    initial: Digest
    initial_origin: str | None
    rounds: int
    contributors: tuple[Address, ...]
    lineage: tuple[Digest, ...]
    published_at: AwareDatetime
    classification: Classified = LESIONS
    use: Use | None = Field(default=None, exclude_if=lambda use: use is None, description="how to read its outputs")


class ModelRegistration(Wire):
    """Register a job's published model; the chain is asked whether it was."""

    job: JobId
    digest: Digest
    architecture: ArchitectureName
    image_size: Integer = Field(ge=32, le=1024)
    classification: Classified = LESIONS
    use: Use | None = Field(default=None, exclude_if=lambda use: use is None, description="how to read its outputs")

    @model_validator(mode="after")
    def _critical(self) -> Self:
        threshold = None if self.use is None else self.use.critical
        if threshold is not None and threshold.code != self.classification.critical:
            raise ValueError("a threshold is of the classification's critical class, and of no other")
        if self.use is not None and self.use.own_counts is not None:
            raise ValueError("no own_counts: they are of where a picture is from, and of no model")
        counts = None if self.use is None else self.use.class_counts
        if counts is not None and len(counts) != len(self.classification.classes):
            raise ValueError("class_counts of a use must be as many as the classification's classes")
        return self


class ClassProbability(Wire):
    """One class's share."""

    code: str
    name: str
    probability: float = Field(ge=0, le=1)


class AttentionMap(Wire):
    """Where the network looked for one class: a coarse grid over the picture, rows from the top, values from 0 to 1.

    Source: class activation maps, Zhou et al. (CVPR 2016), which Grad-CAM (Selvaraju et al., ICCV 2017) equals up to
    scale for networks that end in global average pooling and one linear layer.
    """

    code: str
    grid: tuple[tuple[float, ...], ...]


class Critical(Wire):
    """What the model says of the class that must not be missed. `share` is the network's own, before any temperature;
    from `threshold` on it is `above`. `sensitivity` and `specificity` are what held-out pictures show of that rule."""

    code: str
    share: float = Field(ge=0, le=1)
    threshold: float = Field(ge=0, le=1)
    above: bool
    sensitivity: float = Field(ge=0, le=1)
    specificity: float | None = Field(ge=0, le=1)


class Unusual(Wire):
    """How odd the network finds a picture. One `beyond` the threshold may be none of what the model was trained for,
    and its probabilities then mean nothing; `notice` says so."""

    oddity: float
    threshold: float
    beyond: bool
    notice: str | None = None


class Prediction(Wire):
    """Probabilities of the model's classes in its order, which sum to one, and the model that gave them. No medical
    device.

    `attention` has one map a class where it was asked for. `critical` and `unusual` are there where the model's job
    found thresholds.
    """

    model: Digest
    job: JobId
    probabilities: tuple[ClassProbability, ...] = Field(min_length=FEWEST, max_length=MOST)
    attention: tuple[AttentionMap, ...] | None = None
    milliseconds: float
    notice: str = NOTICE
    critical: Critical | None = Field(default=None, exclude_if=lambda critical: critical is None)
    unusual: Unusual | None = Field(default=None, exclude_if=lambda unusual: unusual is None)

"""The node's own folder: base models by digest, the trunks of those that are adapters, and the updates it made by job
and round.

What an update's encoding left out lies beside it, to go into the next one, and so does what the hospital keeps to
itself: a round's training only ever reads what an earlier round left, and writes its own, so that a task that is tried
again adds nothing twice.

An update is written in two steps, so that a crash costs no work that was finished: `trained.json` beside the tensors
when training ended, `metrics.json` when they were uploaded. What is there is sent again byte for byte, not made again.

Several processes of one hospital may share the folder: each holds a lock on it while it lives, and one on the update it
works at.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from concilia_kit import digests
from concilia_kit.digests import Digest
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.encoding import Encoded
from concilia_kit.wire.masking import Masked
from concilia_kit.wire.privacy import Spent
from concilia_kit.wire.training import UpdateMetrics
from pydantic import BaseModel, ConfigDict, ValidationError

from concilia_client_node.flushing import write_whole
from concilia_client_node.locks import FileLock
from concilia_client_node.masking_folder import MaskingFolder

BASES_KEPT = 3
TRUNKS_KEPT = 2  # apart from bases, of which each round brings another
UPDATES_KEPT = 3  # whole, with tensors; records of a few hundred bytes stay
LISTS_KEPT = 200
LEFT_KEPT = 4  # of each kind, over all jobs
_LOCK_SECONDS = 0.1

_Record = TypeVar("_Record", bound=BaseModel)


class Kind(StrEnum):
    """What a round leaves to later ones: what its update's encoding left out, tensors that are the hospital's own, and
    its control variate."""

    LEFT = "left"
    PERSONAL = "personal"
    CONTROL = "control"


class Trained(BaseModel):
    """A finished training: the update's digest and what is known before it is uploaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Digest
    digest: Digest
    size: int
    loss: float | None = None
    accuracy: float | None = None
    images: int
    lesions: int
    skipped_images: int
    epochs: int
    seconds_download: float
    seconds_training: float
    bytes_download: int
    encoded: Encoded | None = None
    staleness: int = 0  # rounds by which it is late in this one
    reach: float | None = None
    first_loss: float | None = None
    class_counts: tuple[int, ...] | None = None
    masked: Masked | None = None
    privacy: Spent | None = None


class NodeFolder:
    """The folder, which processes of one hospital may share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._in_use = FileLock(directory / "in-use")
        self.scratch = directory / "scratch"
        self.masking = MaskingFolder(directory / "masking")
        self.account = directory / "account.jsonl"
        """What training with differential privacy has cost; see `budget`."""

    def open(self) -> None:
        """Make the folders and clear what a crash left half-written, unless a living process uses the folder: what
        looks half-written may be its work. Raises `OSError`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._in_use.take():
            shutil.rmtree(self.scratch, ignore_errors=True)
            for partial in self._directory.rglob("*.partial"):
                partial.unlink(missing_ok=True)
        while not self._in_use.take(shared=True):
            time.sleep(_LOCK_SECONDS)  # another process is clearing up
        for path in (self.scratch, self._bases(), self._trunks(), self._updates()):
            path.mkdir(parents=True, exist_ok=True)

    def base(self, digest: str) -> Path:
        """Where the base model of that digest is kept, whether it is there or not."""
        return self._bases() / f"{digest}.safetensors"

    def use_base(self, digest: str) -> bool:
        """Whether the base is there; if so it counts as used just now, and the least recently used beyond
        `BASES_KEPT` go."""
        return _use(self.base(digest), BASES_KEPT)

    def trunk(self, digest: str) -> Path:
        """Where an adapter's trunk of that digest is kept, whether it is there or not."""
        return self._trunks() / f"{digest}.safetensors"

    def use_trunk(self, digest: str) -> bool:
        """As `use_base`, of trunks and `TRUNKS_KEPT`."""
        return _use(self.trunk(digest), TRUNKS_KEPT)

    @contextmanager
    def alone(self, job: str, number: int, check: Callable[[], None]) -> Iterator[None]:
        """Work at an update while no sibling does; `check` is called while one does and may raise to stop waiting."""
        lock = FileLock(self._update(job, number) / "lock")
        while not lock.take():
            check()
            time.sleep(_LOCK_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def is_taken(self, job: str, number: int) -> bool:
        """Whether a sibling works at an update just now."""
        lock = FileLock(self._update(job, number) / "lock")
        if not lock.take():
            return True
        lock.release()
        return False

    def update(self, job: str, number: int) -> Path:
        """Where the update's tensors are kept; makes its folder."""
        return self._update(job, number) / "update.safetensors"

    def has_update(self, job: str, number: int, digest: str) -> bool:
        """Whether the update's tensors are there as they were made; a power cut may have taken what was not flushed."""
        try:
            return digests.of_file(self.update(job, number)) == digest
        except FileNotFoundError:
            return False

    def flush_update(self, job: str, number: int) -> None:
        """Have the update's tensors on the disk. Raises `OSError`."""
        with self.update(job, number).open("rb") as file:
            os.fsync(file.fileno())

    def leaving(self, job: str, number: int) -> Path:
        """Where what leaves for a round is listed; makes its folder, and the oldest beyond `LISTS_KEPT` go."""
        for path in _oldest(self._updates().glob("*/*/leaving.json"), LISTS_KEPT):
            path.unlink(missing_ok=True)
        return self._update(job, number) / "leaving.json"

    def beside(self, kind: Kind, job: str, number: int) -> Path:
        """Where something is kept that a round leaves to later ones; makes its folder."""
        return self._update(job, number) / f"{kind}.safetensors"

    def earlier(self, kind: Kind, job: str, number: int) -> list[int]:
        """Rounds of the job before that one which left such a thing, the latest first."""
        rounds = [int(path.parent.name) for path in (self._updates() / job).glob(f"*/{kind}.safetensors")]
        return sorted((earlier for earlier in rounds if earlier < number), reverse=True)

    def open_beside(self, kind: Kind, job: str, number: int) -> TensorFile | None:
        """What an earlier round left, if it can be read."""
        try:
            return TensorFile.open(self.beside(kind, job, number))
        except (FileNotFoundError, MalformedFile):
            return None

    def trained(self, job: str, number: int) -> Trained | None:
        """The record of a finished training."""
        return _read(self._update(job, number) / "trained.json", Trained)

    def last_trained(self, job: str, number: int) -> int | None:
        """The last round of the job, up to that one, of which there is the record of a finished training."""
        rounds = [int(path.parent.name) for path in (self._updates() / job).glob("*/trained.json")]
        return max((each for each in rounds if each <= number), default=None)

    def metrics(self, job: str, number: int) -> UpdateMetrics | None:
        """The metrics of an uploaded update, as they were signed."""
        return _read(self._update(job, number) / "metrics.json", UpdateMetrics)

    def keep_trained(self, job: str, number: int, record: Trained) -> None:
        """Record that training ended; metrics of an earlier attempt on another base go."""
        (self._update(job, number) / "metrics.json").unlink(missing_ok=True)
        _write(self._update(job, number) / "trained.json", record)
        for kind in Kind:
            for path in _oldest(self._updates().glob(f"*/*/{kind}.safetensors"), LEFT_KEPT):
                path.unlink(missing_ok=True)
        for path in _oldest(self._updates().glob("*/*/update.safetensors"), UPDATES_KEPT):
            lock = FileLock(path.with_name("lock"))
            if lock.take():  # no sibling is sending it
                path.unlink(missing_ok=True)
                lock.release()

    def keep_metrics(self, job: str, number: int, metrics: UpdateMetrics) -> None:
        """Record what is about to be signed."""
        _write(self._update(job, number) / "metrics.json", metrics)

    def _bases(self) -> Path:
        return self._directory / "bases"

    def _trunks(self) -> Path:
        return self._directory / "trunks"

    def _updates(self) -> Path:
        return self._directory / "updates"

    def _update(self, job: str, number: int) -> Path:
        path = self._updates() / job / str(number)
        path.mkdir(parents=True, exist_ok=True)
        return path


def _use(path: Path, kept: int) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    for old in _oldest(path.parent.glob("*.safetensors"), kept):
        old.unlink(missing_ok=True)
    return True


def _oldest(paths: Iterable[Path], keep: int) -> list[Path]:
    """All but the `keep` last used."""
    return sorted(paths, key=_last_used, reverse=True)[keep:]


def _last_used(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # a sibling was faster
        return 0


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(path: Path, record: BaseModel) -> None:
    write_whole(path, record.model_dump_json().encode())

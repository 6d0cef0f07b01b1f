"""A training at a hospital, from the round that the ledger has open to the update that it has recorded.

Ask the ledger whether the round is open on this base, fetch the base by digest, train, write and hash the update,
upload it, sign the statement about it, have it recorded or, in a Merkle round, collected. Each finished step is kept on
disk; a task that comes again goes on from there, and an update that was made is sent again byte for byte (signatures
are deterministic, RFC 6979). Of an asynchronous job, what was trained when the round is over goes into a later one
(`late`). With secure aggregation the masking's first stages come before the training, and the update is written
masked (`masking`).
"""

from __future__ import annotations

import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from concilia_kit import encodings, logs
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.chain import LedgerRound
from concilia_kit.wire.encoding import Encoded
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import TrainTask, UpdateMetrics

from concilia_client_node import late, leaving, masking, orders, submitting, tampering
from concilia_client_node.carrying import Luggage
from concilia_client_node.consortium import transient
from concilia_client_node.errors import Over, Refused, WeightsError
from concilia_client_node.means import Means
from concilia_client_node.store import Kind, Trained
from concilia_client_node.trainer import Extent, Tensors, mix

_log = logs.get(__name__)


@dataclass(frozen=True)
class Updating:
    """Trainings of one hospital."""

    means: Means

    def train_alone(self, task: TrainTask, then: list[TrainTask]) -> None:
        """Carry a task out; `then` gets the task that late work goes into. Raises `NodeError`, `Problem`, `OSError`."""
        means = self.means
        try:
            # A task that came twice (its first worker was taken for dead) is not trained twice: the second waits and
            # finds.
            with means.folder.alone(task.job, task.round, means.check_until(task.deadline)):
                self._train(task)
        except Over as over:
            if not task.asynchronous or means.folder.last_trained(task.job, sys.maxsize) != task.round:
                raise  # nothing was trained, or a later round has it
            if late.taken(means.round(task.job, task.round), means.address):
                raise
            means.end(task, Stage.REFUSED, f"{over}; what was trained is kept for a later round")
            if (later := late.following(means.consortium, means.address, task)) is not None:
                then.append(later)

    def _train(self, task: TrainTask) -> None:
        means, folder = self.means, self.means.folder
        means.floors.see_job(task)
        means.spending.see_job(task)
        kept = folder.trained(task.job, task.round)
        if kept is not None and (
            kept.base != task.base
            or (kept.masked is None) != (task.secure is None)
            or (kept.privacy is None) != (task.privacy is None and task.central is None)
        ):
            kept = None
        found = self._see_open(task)
        if submitting.recorded(means, task, found):
            means.end(task, Stage.SUBMITTED, "the update was on the ledger already")
            return
        metrics = folder.metrics(task.job, task.round) if kept is not None else None
        if metrics is None and means.address in found.collected:
            # Nobody says which update it is before the commitment; one that is kept here is sent again, to be told.
            means.end(task, Stage.SUBMITTED, "an update of this hospital was collected already")
            return
        if kept is None or (metrics is None and not folder.has_update(task.job, task.round, kept.digest)):
            kept, metrics = self._carried_over(task) or self._make(task), None
            if task.asynchronous:
                self._see_open(task)  # it may be over by now, and the upload is for the next one
        if metrics is None:
            metrics = self._upload(task, kept)
            folder.keep_metrics(task.job, task.round, metrics)
        submitting.submit(means, task, kept, metrics)

    def _see_open(self, task: TrainTask) -> LedgerRound:
        return orders.see_open(self.means.consortium, task, self.means.address, self.means.clock())

    @property
    def _luggage(self) -> Luggage:
        return Luggage(self.means.folder, self.means.address, self.means.round)

    def _carried_over(self, task: TrainTask) -> Trained | None:
        """Late work as an update of the task's round, kept like one that was trained for it, where there is any."""
        if not task.asynchronous or task.secure is not None:
            return None
        means = self.means
        work = late.find(means.folder, task, lambda number: means.round(task.job, number), means.address)
        if work is None:
            return None
        try:
            moved = [means.fetch(task, digest, means.check) for digest in (work.trained.base, task.base)]
            tensors = work.put_onto(means.folder, task)
        except (Problem, WeightsError, MalformedFile, KeyError) as error:
            if isinstance(error, Problem) and transient(error):
                raise
            _log.warning("late work cannot be used", job=task.job, round=work.number, error=str(error))
            return None
        record = work.record(task, *self._write(task, tensors, None, work.staleness), moved)
        means.folder.keep_trained(task.job, task.round, record)
        return record

    def _make(self, task: TrainTask) -> Trained:
        """Train, and keep the update's tensors and what is known of them."""
        means = self.means
        # Of an asynchronous job a training may outlast its round.
        check = means.check if task.asynchronous else means.check_until(task.deadline)
        if means.floors.any:
            means.floors.see_extent(task, means.trainer.extent(task.local))
        means.spending.see_task(task, means.trainer)
        joined = None
        if task.secure is not None:
            masking.see_unsent(means, task)
            joined = masking.join(means, task, check)  # the others wait for it, so it comes first
        means.trainer.prepare(task.local.image_size, check)
        fetched = means.fetch_model(task, task.base, check)
        for path in filter(None, (means.folder.base(task.base), fetched.trunk)):
            tampering.see_model(path)
        before = self._luggage.rest(task.job, task.round) if task.encoding.feedback else None
        carried = self._luggage.into(task, lambda digest: means.fetch(task, digest, check))
        means.tell(task, Stage.TRAINING, 0.0)
        began = time.monotonic()
        outcome, tensors = means.spending.train(
            means.trainer,
            task,
            means.folder.base(task.base),
            mix(task.seed, task.round, means.address),
            progress=lambda fraction: means.tell(task, Stage.TRAINING, fraction),
            check=check,
            carried=carried,
            trunk=fetched.trunk,
        )
        seconds_training = time.monotonic() - began
        means.metrics.training_seconds.observe(seconds_training)
        means.metrics.images.inc(outcome.images)
        own = means.trainer.personal(task.architecture, task.local.personal)
        tensors = self._luggage.keep(task, tensors, own, outcome.reach, carried)
        encoded, masked = None, None
        if joined is not None:
            written, masked = masking.write(means, task, joined, tensors, outcome.images)
        else:
            written, encoded = self._write(task, tensors, before)
        record = Trained(
            base=task.base,
            digest=written.digest,
            size=written.size,
            loss=outcome.loss,
            accuracy=outcome.accuracy,
            images=outcome.images,
            lesions=outcome.lesions,
            skipped_images=means.trainer.skipped_images,
            epochs=task.local.epochs,
            seconds_download=fetched.seconds,
            seconds_training=seconds_training,
            bytes_download=fetched.bytes,
            encoded=encoded,
            reach=outcome.reach,
            first_loss=outcome.first_loss,
            class_counts=outcome.class_counts,
            masked=masked,
            privacy=means.spending.spend(task, outcome, written.digest),
        )
        means.folder.keep_trained(task.job, task.round, record)
        _log.info("trained", job=task.job, round=task.round, seconds=round(seconds_training, 1), images=outcome.images)
        return record

    def _write(
        self, task: TrainTask, tensors: Tensors, before: TensorFile | None, staleness: int = 0
    ) -> tuple[encodings.Written, Encoded | None]:
        """Write the update in the task's encoding, hashed meanwhile. Raises `Refused`, `OSError`."""
        folder, number, encoding = self.means.folder, task.round, task.encoding
        began = time.monotonic()
        try:
            written = encodings.encode(
                folder.update(task.job, number),
                encoding,
                tensors,
                TensorFile.open(folder.base(task.base)),
                before,
                folder.beside(Kind.LEFT, task.job, number) if encoding.feedback else None,
                staleness,
                # The same pictures make the same update: its digest alone would tell them to whoever can guess.
                "" if task.central is None else secrets.token_hex(32),
            )
        except encodings.NotEncodable as error:
            raise Refused(f"the update cannot be sent as {encoding}: {error}") from error
        if encoding.plain:
            return written, None
        seconds = time.monotonic() - began
        return written, Encoded(encoding=encoding, bytes=written.size, bytes_plain=written.size_plain, seconds=seconds)

    def _upload(self, task: TrainTask, kept: Trained) -> UpdateMetrics:
        means = self.means
        if means.floors.any:  # they may have been raised since it was trained
            means.floors.see_extent(task, Extent(kept.images, kept.lesions))
        if task.secure is not None:
            masking.sending(means, task, kept)
        counts = {"images": kept.images, "lesions": kept.lesions, "epochs": kept.epochs}
        leaving.list_update(means.folder, task.job, task.round, kept.digest, counts)
        means.tell(task, Stage.UPLOADING, 0.0)
        began = time.monotonic()
        path = means.folder.update(task.job, task.round)
        # It goes to this disk while it goes to the service: hours of training are to outlast a power cut.
        with ThreadPoolExecutor(1, thread_name_prefix="flush") as flusher:
            on_disk = flusher.submit(means.folder.flush_update, task.job, task.round)
            means.consortium.store(kept.digest, path, means.check_until(task.deadline))
            on_disk.result()
        return UpdateMetrics(
            **kept.model_dump(exclude={"base", "digest", "size"}),
            seconds_upload=time.monotonic() - began,
            bytes_upload=kept.size,
        )

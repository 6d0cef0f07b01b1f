"""The life of a task at a hospital.

A task is worked at only where a coordinator signed it, by the roles that the ledger has.

Training: ask the ledger whether the round is open on this base, fetch the base by digest, train, write and hash the
update, upload it, sign the statement about it, have it recorded or, in a Merkle round, collected. Each finished step is
kept on disk; a task that comes again goes on from there, and an update that was made is sent again byte for byte
(signatures are deterministic, RFC 6979). What the ledger refuses is not tried again. Of an asynchronous job, what was
trained when the round is over goes into a later one (`late`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from concilia_kit import digests, encodings, logs, merkle, signing
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.chain import Acknowledgement, LedgerRound, UpdateSubmission
from concilia_kit.wire.encoding import Encoded
from concilia_kit.wire.training import (
    EvaluateTask,
    EvaluationReport,
    Personal,
    Progress,
    Stage,
    Task,
    TrainTask,
    UpdateMetrics,
)
from eth_account.signers.local import LocalAccount

from concilia_client_node import calibrating, fetching, late, orders
from concilia_client_node.carrying import Luggage
from concilia_client_node.consortium import BASE_CHANGED, Consortium, transient
from concilia_client_node.errors import NodeError, Over, Refused, Stopped, WeightsError
from concilia_client_node.metrics import EVALUATE, RETRIED, STOPPED, TRAIN, NodeMetrics
from concilia_client_node.presence import ProgressReporter
from concilia_client_node.store import Kind, NodeFolder, Trained
from concilia_client_node.trainer import Carried, Tensors, Trainer, mix

_log = logs.get(__name__)
_REMEMBERED = 256  # ended tasks


@dataclass(frozen=True)
class Hospital:
    """One hospital's node. `stop` is set when the process is to end; work then raises `Stopped`."""

    account: LocalAccount
    consortium: Consortium
    trainer: Trainer
    folder: NodeFolder
    reporter: ProgressReporter
    stop: threading.Event
    classification: Classification = LESIONS
    clock: Callable[[], float] = time.time
    metrics: NodeMetrics = field(default_factory=NodeMetrics)
    _ended: deque[Task] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def has_ended(self, task: Task) -> bool:
        """Whether this process carried a task to its end, be it a good one or not, and lately."""
        return task in self._ended

    def look_after(self, task: Task) -> bool:
        """See to it that an update is still in the store whose round is open; whether it had to be brought again: a
        disk may have changed it since. Raises `Problem`, `OSError`."""
        if not isinstance(task, TrainTask):
            return False
        kept, path = self.folder.trained(task.job, task.round), self.folder.update(task.job, task.round)
        if kept is None or not path.exists() or self.folder.metrics(task.job, task.round) is None:
            return False
        if self.consortium.has(kept.digest):
            return False
        self.consortium.store(kept.digest, path, self._check)
        _log.warning("update brought again", job=task.job, round=task.round, artifact=kept.digest)
        return True

    def give_up(self, task: Task, problem: Problem) -> None:
        """No other try is worth it."""
        self._end(task, Stage.FAILED, f"given up: {problem.problem_code}: {problem.detail}")

    def work(self, task: Task, signature: str) -> None:
        """Carry a task out that a coordinator signed; of a training whose work is late, at once the one that it goes
        into. Raises `Stopped`, and a `Problem` that is worth another try."""
        if isinstance(task, EvaluateTask):
            self._carry_out(task, lambda: self._evaluate(task), signature)
            return
        if task.asynchronous and self.has_ended(task):
            return  # with late work, before its message came
        then: list[TrainTask] = []
        self._carry_out(task, lambda: self._train_alone(task, then), signature)
        while then:
            later = then.pop()
            try:
                self._carry_out(later, partial(self._train_alone, later, then))
            except Problem as problem:  # it comes by itself, too
                _log.warning("late work waits", job=later.job, round=later.round, code=problem.problem_code)

    def _carry_out(self, task: Task, work: Callable[[], None], signature: str | None = None) -> None:
        """Do what a task asks for. One without a signature is this node's own, of a round that is open."""
        try:
            if signature is not None:
                orders.see_who_asks(self.consortium, task, signature)
            orders.see_what_is_told_apart(task, self.classification)
            work()
        except Stopped:
            self._count(task, STOPPED)
            raise
        except NodeError as error:
            self._end(task, Stage.REFUSED, str(error))
        except Problem as problem:
            if transient(problem):
                self._count(task, RETRIED)
                if problem.problem_code == BASE_CHANGED:
                    self._tell(task, Stage.DOWNLOADING, 0.0, f"refused: {problem.detail}")
                raise
            self._end(task, Stage.REFUSED, f"{problem.problem_code}: {problem.detail}")
        except OSError as error:
            self._end(task, Stage.FAILED, f"the node's disk: {error.strerror}")
        except Exception as error:
            _log.exception("task failed", job=task.job, round=task.round)
            self._end(task, Stage.FAILED, f"unexpected {type(error).__name__}; the node's log has it")

    def _train_alone(self, task: TrainTask, then: list[TrainTask]) -> None:
        try:
            # A task that came twice (its first worker was taken for dead) is not trained twice: the second waits and
            # finds.
            with self.folder.alone(task.job, task.round, self._check_until(task.deadline)):
                self._train(task)
        except Over as over:
            if not task.asynchronous or self.folder.last_trained(task.job, sys.maxsize) != task.round:
                raise  # nothing was trained, or a later round has it
            if late.taken(self._round(task, task.round), self.account.address):
                raise
            self._end(task, Stage.REFUSED, f"{over}; what was trained is kept for a later round")
            if (later := late.following(self.consortium, self.account.address, task)) is not None:
                then.append(later)

    def _train(self, task: TrainTask) -> None:
        kept = self.folder.trained(task.job, task.round)
        if kept is not None and kept.base != task.base:
            kept = None
        found = self._see_open(task)
        if self._recorded(task, found):
            self._end(task, Stage.SUBMITTED, "the update was on the ledger already")
            return
        metrics = self.folder.metrics(task.job, task.round) if kept is not None else None
        if metrics is None and self.account.address in found.collected:
            # Nobody says which update it is before the commitment; one that is kept here is sent again, to be told.
            self._end(task, Stage.SUBMITTED, "an update of this hospital was collected already")
            return
        if kept is None or (metrics is None and not self.folder.has_update(task.job, task.round, kept.digest)):
            kept, metrics = self._carried_over(task) or self._make(task), None
            if task.asynchronous:
                self._see_open(task)  # it may be over by now, and the upload is for the next one
        if metrics is None:
            metrics = self._upload(task, kept)
            self.folder.keep_metrics(task.job, task.round, metrics)
        self._submit(task, kept, metrics)

    def _see_open(self, task: TrainTask) -> LedgerRound:
        return orders.see_open(self.consortium, task, self.account.address, self.clock())

    @property
    def _luggage(self) -> Luggage:
        address = self.account.address
        return Luggage(self.folder, address, lambda job, number: self.consortium.round(job, number, address))

    def _round(self, task: TrainTask, number: int) -> LedgerRound:
        return self.consortium.round(task.job, number, self.account.address)

    def _recorded(self, task: TrainTask, found: LedgerRound) -> bool:
        """Whether the ledger has this hospital's update. Raises `Refused` where it is not the one kept here."""
        ours = [item.update.digest for item in found.updates if item.update.hospital == self.account.address]
        kept = self.folder.trained(task.job, task.round)
        if ours and kept is not None and kept.digest not in ours:
            raise Refused("the ledger has another update of this hospital in this round")
        return bool(ours)

    def _carried_over(self, task: TrainTask) -> Trained | None:
        """Late work as an update of the task's round, kept like one that was trained for it, where there is any."""
        if not task.asynchronous:
            return None
        work = late.find(self.folder, task, lambda number: self._round(task, number), self.account.address)
        if work is None:
            return None
        try:
            moved = [self._fetch(task, digest, self._check) for digest in (work.trained.base, task.base)]
            tensors = work.put_onto(self.folder, task)
        except (Problem, WeightsError, MalformedFile, KeyError) as error:
            if isinstance(error, Problem) and transient(error):
                raise
            _log.warning("late work cannot be used", job=task.job, round=work.number, error=str(error))
            return None
        record = work.record(task, *self._write(task, tensors, None, work.staleness), moved)
        self.folder.keep_trained(task.job, task.round, record)
        return record

    def _make(self, task: TrainTask) -> Trained:
        """Train, and keep the update's tensors and what is known of them."""
        # Of an asynchronous job a training may outlast its round.
        check = self._check if task.asynchronous else self._check_until(task.deadline)
        self.trainer.prepare(task.local.image_size, check)
        fetched = self._fetch_model(task, task.base, check)
        before = self._luggage.rest(task.job, task.round) if task.encoding.feedback else None
        carried = self._luggage.into(task, lambda digest: self._fetch(task, digest, check))
        self._tell(task, Stage.TRAINING, 0.0)
        began = time.monotonic()
        outcome, tensors = self.trainer.train(
            task.architecture,
            self.folder.base(task.base),
            task.local,
            mix(task.seed, task.round, self.account.address),
            progress=lambda fraction: self._tell(task, Stage.TRAINING, fraction),
            check=check,
            carried=carried,
            trunk=fetched.trunk,
        )
        seconds_training = time.monotonic() - began
        self.metrics.training_seconds.observe(seconds_training)
        self.metrics.images.inc(outcome.images)
        own = self.trainer.personal(task.architecture, task.local.personal)
        tensors = self._luggage.keep(task, tensors, own, outcome.reach, carried)
        written, encoded = self._write(task, tensors, before)
        record = Trained(
            base=task.base,
            digest=written.digest,
            size=written.size,
            loss=outcome.loss,
            accuracy=outcome.accuracy,
            images=outcome.images,
            lesions=outcome.lesions,
            skipped_images=self.trainer.skipped_images,
            epochs=task.local.epochs,
            seconds_download=fetched.seconds,
            seconds_training=seconds_training,
            bytes_download=fetched.bytes,
            encoded=encoded,
            reach=outcome.reach,
            first_loss=outcome.first_loss,
        )
        self.folder.keep_trained(task.job, task.round, record)
        _log.info("trained", job=task.job, round=task.round, seconds=round(seconds_training, 1), images=outcome.images)
        return record

    def _write(
        self, task: TrainTask, tensors: Tensors, before: TensorFile | None, staleness: int = 0
    ) -> tuple[encodings.Written, Encoded | None]:
        """Write the update in the task's encoding, hashed meanwhile. Raises `Refused`, `OSError`."""
        number, encoding = task.round, task.encoding
        began = time.monotonic()
        try:
            written = encodings.encode(
                self.folder.update(task.job, number),
                encoding,
                tensors,
                TensorFile.open(self.folder.base(task.base)),
                before,
                self.folder.beside(Kind.LEFT, task.job, number) if encoding.feedback else None,
                staleness,
            )
        except encodings.NotEncodable as error:
            raise Refused(f"the update cannot be sent as {encoding}: {error}") from error
        if encoding.plain:
            return written, None
        seconds = time.monotonic() - began
        return written, Encoded(encoding=encoding, bytes=written.size, bytes_plain=written.size_plain, seconds=seconds)

    def _upload(self, task: TrainTask, kept: Trained) -> UpdateMetrics:
        self._tell(task, Stage.UPLOADING, 0.0)
        began = time.monotonic()
        path = self.folder.update(task.job, task.round)
        # It goes to this disk while it goes to the service: hours of training are to outlast a power cut.
        with ThreadPoolExecutor(1, thread_name_prefix="flush") as flusher:
            on_disk = flusher.submit(self.folder.flush_update, task.job, task.round)
            self.consortium.store(kept.digest, path, self._check_until(task.deadline))
            on_disk.result()
        return UpdateMetrics(
            **kept.model_dump(exclude={"base", "digest", "size"}),
            seconds_upload=time.monotonic() - began,
            bytes_upload=kept.size,
        )

    def _submit(self, task: TrainTask, kept: Trained, metrics: UpdateMetrics) -> None:
        self._tell(task, Stage.SUBMITTING, 0.0)
        update = signing.Update(
            hospital=self.account.address,
            job=task.job,
            round=task.round,
            base=kept.base,
            digest=kept.digest,
            samples=kept.images,
            metrics=digests.of_json(metrics.model_dump(mode="json")),
        )
        domain = self.consortium.domain()
        signature = signing.sign(update, domain, self.account)
        words = f"update of {kept.images} images" + (f", late by {kept.staleness}" if kept.staleness else "")
        try:
            answer = self.consortium.submit(UpdateSubmission(update=update, metrics=metrics, signature=signature))
        except Problem as problem:
            # An answer that was lost on its way: the ledger knows whether it is ours that is there.
            code = problem.problem_code
            if code not in _THERE_ALREADY or not self._recorded(task, self._round(task, task.round)):
                if code in _OVER:
                    raise Over(f"{code}: {problem.detail}") from problem
                raise
        else:
            if isinstance(answer, Acknowledgement):
                self._acknowledged(answer, merkle.leaf(merkle.update_data(update, domain, signature)).hex())
                words += ", collected for the round's commitment"
        self._end(task, Stage.SUBMITTED, words)

    def _acknowledged(self, answer: Acknowledgement, leaf: str) -> None:
        """Log what was collected, by which its place in the commitment can be found. Raises `Refused`."""
        if answer.leaf != leaf:
            raise Refused(f"leaf {answer.leaf[:12]}… was collected, and not this update's, {leaf[:12]}…")
        _log.info(
            "collected", job=answer.job, round=answer.round, leaf=leaf, received_at=answer.received_at.isoformat()
        )

    def _evaluate(self, task: EvaluateTask) -> None:
        began = time.monotonic()
        orders.see_closed_with(self.consortium, task, self.account.address)
        self.trainer.prepare(task.image_size, self._check)
        trunk = self._fetch_model(task, task.model, self._check).trunk
        self._tell(task, Stage.EVALUATING, 0.0)
        # The seed leaves the round out: every round is measured on the same images.
        seed = mix(task.seed, self.account.address)
        model = self.folder.base(task.model)
        own = Carried({} if task.personal is Personal.NOTHING else self._luggage.personal(task.job, task.round + 1))
        counts, overlapping = self.trainer.evaluate(
            task.architecture, model, task.image_size, task.evaluation, seed, self._check, own, trunk, task.calibrate
        )
        report = EvaluationReport(
            job=task.job,
            round=task.round,
            model=task.model,
            confusion=counts.confusion,
            positives=counts.positives,
            negatives=counts.negatives,
            loss_sum=counts.loss_sum,
            images=counts.images,
            lesions=counts.lesions,
            overlapping_lesions=overlapping,
            skipped_images=self.trainer.skipped_images,
            seconds=time.monotonic() - began,
            calibration=counts.calibration,
        )
        self.consortium.report(self.account.address, calibrating.fitting(report))
        self._end(task, Stage.EVALUATED, f"{counts.images} held-out images")

    def _fetch(self, task: Task, digest: str, check: Callable[[], None]) -> fetching.Fetched:
        tell = partial(self._tell, task, Stage.DOWNLOADING, 0.0)
        return fetching.artifact(self.consortium, self.folder, digest, check, tell)

    def _fetch_model(self, task: Task, digest: str, check: Callable[[], None]) -> fetching.Fetched:
        tell = partial(self._tell, task, Stage.DOWNLOADING, 0.0)
        return fetching.model(self.consortium, self.folder, digest, check, tell)

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped("the node is shutting down")

    def _check_until(self, deadline: int) -> Callable[[], None]:
        def check() -> None:
            self._check()
            if self.clock() > deadline:
                raise Over("the task's deadline passed during the work")

        return check

    def _tell(self, task: Task, stage: Stage, fraction: float, detail: str = "") -> None:
        self.reporter.report(task.job, task.round, Progress(stage=stage, fraction=fraction, detail=detail[:500]))

    def _end(self, task: Task, stage: Stage, detail: str) -> None:
        _log.log(_LEVELS.get(stage, 20), stage.value, job=task.job, round=task.round, detail=detail)
        self._ended.append(task)
        self._tell(task, stage, 1.0, detail)
        self._count(task, stage.value)

    def _count(self, task: Task, outcome: str) -> None:
        self.metrics.tasks.labels(TRAIN if isinstance(task, TrainTask) else EVALUATE, outcome).inc()


_THERE_ALREADY = frozenset({"already_submitted", "already_committed"})
_OVER = frozenset({"round_not_open", "deadline_passed", "already_committed"})
_LEVELS = {Stage.REFUSED: 30, Stage.FAILED: 40}

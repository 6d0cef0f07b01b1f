"""An update that was uploaded is signed, and handed to the ledger: recorded, or collected for a Merkle round's
commitment."""

from __future__ import annotations

from concilia_kit import digests, logs, merkle, signing
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import Acknowledgement, LedgerRound, UpdateSubmission
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import TrainTask, UpdateMetrics

from concilia_client_node import leaving
from concilia_client_node.errors import Over, Refused
from concilia_client_node.means import Means
from concilia_client_node.store import Trained

_THERE_ALREADY = frozenset({"already_submitted", "already_committed"})
_OVER = frozenset({"round_not_open", "deadline_passed", "already_committed"})
_log = logs.get(__name__)


def recorded(means: Means, task: TrainTask, found: LedgerRound) -> bool:
    """Whether the ledger has this hospital's update. Raises `Refused` where it is not the one kept here."""
    ours = [item.update.digest for item in found.updates if item.update.hospital == means.address]
    kept = means.folder.trained(task.job, task.round)
    if ours and kept is not None and kept.digest not in ours:
        raise Refused("the ledger has another update of this hospital in this round")
    return bool(ours)


def submit(means: Means, task: TrainTask, kept: Trained, metrics: UpdateMetrics) -> None:
    """Sign and submit. Raises `Over`, `Refused`, `Problem`, `OSError`."""
    means.tell(task, Stage.SUBMITTING, 0.0)
    update = signing.Update(
        hospital=means.address,
        job=task.job,
        round=task.round,
        base=kept.base,
        digest=kept.digest,
        samples=kept.images,
        metrics=digests.of_json(metrics.model_dump(mode="json")),
    )
    domain = means.consortium.domain()
    signature = signing.sign(update, domain, means.account)
    leaving.list_statement(means.folder, update, metrics, signature)
    words = f"update of {kept.images} images" + (f", late by {kept.staleness}" if kept.staleness else "")
    try:
        answer = means.consortium.submit(UpdateSubmission(update=update, metrics=metrics, signature=signature))
    except Problem as problem:
        # An answer that was lost on its way: the ledger knows whether it is ours that is there.
        code = problem.problem_code
        if code not in _THERE_ALREADY or not recorded(means, task, means.round(task.job, task.round)):
            if code in _OVER:
                raise Over(f"{code}: {problem.detail}") from problem
            raise
    else:
        if isinstance(answer, Acknowledgement):
            _acknowledged(answer, merkle.leaf(merkle.update_data(update, domain, signature)).hex())
            words += ", collected for the round's commitment"
    means.end(task, Stage.SUBMITTED, words)


def _acknowledged(answer: Acknowledgement, leaf: str) -> None:
    """Log what was collected, by which its place in the commitment can be found. Raises `Refused`."""
    if answer.leaf != leaf:
        raise Refused(f"leaf {answer.leaf[:12]}… was collected, and not this update's, {leaf[:12]}…")
    _log.info("collected", job=answer.job, round=answer.round, leaf=leaf, received_at=answer.received_at.isoformat())

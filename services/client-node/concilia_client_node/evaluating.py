"""An evaluation at a hospital: fetch the model that the ledger has, count on held-out lesions, hand the counts in."""

from __future__ import annotations

import time

from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import EvaluateTask, EvaluationReport, Personal

from concilia_client_node import calibrating, leaving, orders
from concilia_client_node.carrying import Luggage
from concilia_client_node.means import Means
from concilia_client_node.trainer import Carried, mix


def evaluate(means: Means, task: EvaluateTask) -> None:
    """Carry the task out. Raises `NodeError`, `Problem`, `OSError`."""
    began = time.monotonic()
    orders.see_closed_with(means.consortium, task, means.address)
    means.folder.masking.forget(task.job, task.round)  # that round's sum is settled
    means.trainer.prepare(task.image_size, means.check)
    trunk = means.fetch_model(task, task.model, means.check).trunk
    means.tell(task, Stage.EVALUATING, 0.0)
    # The seed leaves the round out: every round is measured on the same images.
    seed = mix(task.seed, means.address)
    model = means.folder.base(task.model)
    luggage = Luggage(means.folder, means.address, means.round)
    own = Carried({} if task.personal is Personal.NOTHING else luggage.personal(task.job, task.round + 1))
    counts, overlapping = means.trainer.evaluate(
        task.architecture, model, task.image_size, task.evaluation, seed, means.check, own, trunk, task.calibrate
    )
    report = calibrating.fitting(
        EvaluationReport(
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
            skipped_images=means.trainer.skipped_images,
            seconds=time.monotonic() - began,
            calibration=counts.calibration,
        )
    )
    leaving.list_report(means.folder, report)
    means.consortium.report(means.address, report)
    means.end(task, Stage.EVALUATED, f"{counts.images} held-out images")

"""How late an asynchronous job's update says that it is: in its file, whose digest its hospital signed. Pure.

A hospital trains for a round and, where that is over by then, submits its work in a later one: its staleness is how
many rounds later, and its weight depends on it (`strategies.fedbuff`). The file says it, so that whoever has what is
folded has also what it is weighed by: an auditor may have nothing but the chain and the files.
"""

from __future__ import annotations

from concilia_kit.encodings import staleness_of
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.chain import Reason
from concilia_kit.wire.training import MAX_STALENESS, UpdateMetrics


def most(number: int) -> int:
    """By how many rounds an update in round `number` can be late: there was none before the first."""
    return min(MAX_STALENESS, number - 1)


def claimed(metrics: UpdateMetrics | None) -> Reason | None:
    """Why an update is left out whose metrics call it late where the job is not asynchronous. What its file says there
    has no effect."""
    return Reason.SAMPLE_COUNT if metrics is not None and metrics.staleness else None


def fault(update: TensorFile, metrics: UpdateMetrics | None, number: int) -> Reason | None:
    """Why an asynchronous job's update of round `number` is left out for what it says of its staleness, or None where
    it is fine.

    Rules, in the order they apply: what the file says is a number (`MALFORMED_FILE`); it is not more than can be; the
    signed metrics, where they are at hand, say the same to people (`SAMPLE_COUNT`, the reason for weights that cannot
    be).
    """
    try:
        late = staleness_of(update)
    except MalformedFile:
        return Reason.MALFORMED_FILE
    if late > most(number):
        return Reason.SAMPLE_COUNT
    return Reason.SAMPLE_COUNT if metrics is not None and metrics.staleness != late else None

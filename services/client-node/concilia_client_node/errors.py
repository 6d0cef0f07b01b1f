"""What can go wrong in a node, each with a message of one line that says what to do.

Messages carry counts and never a file name or a lesion: some of them travel to the aggregator.
The exception is `DatasetError`, which is shown only to the hospital that owns the folder.
"""

from __future__ import annotations


class NodeError(Exception):
    """The base of a node's own errors."""


class DatasetError(NodeError):
    """The data folder cannot be used as it is."""


class SplitMoved(DatasetError):
    """Lesions would be on another side than in earlier rounds; the message carries counts only."""


class TooManyUnreadable(DatasetError):
    """More pictures are missing or broken than the hospital accepts; the message carries counts only."""


class WeightsError(NodeError):
    """A weights file does not fit the architecture, or is not what its digest promised."""


class Refused(NodeError):
    """A task that must not be carried out, now or later: late, foreign, or unlike what the ledger says."""


class Over(Refused):
    """The task's round is over, on the ledger or by its deadline."""


class Stopped(NodeError):
    """The node is shutting down; the task goes back to its queue."""

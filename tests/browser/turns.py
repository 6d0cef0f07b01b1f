"""Taking turns: tests of several processes run side by side, those that measure time run while no other does."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def turn(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Hold a turn: beside others, or with nobody beside. `folder` is one that all processes share.

    Who waits to be alone waits at the gate, so that no turn begins before theirs. A process that
    dies gives its turn up.
    """
    with (folder / "gate").open("w") as gate, (folder / "floor").open("w") as floor:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield

"""Models brought into a node's folder, each by its digest, and the trunk of one that is an adapter.

The ledger names a round's model, the model's file names its trunk: so the trunk, too, is one that nobody can swap. It
is fetched once, and kept apart from models, of which each round brings another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.adapter import Adapter

from concilia_client_node.consortium import Consortium
from concilia_client_node.errors import WeightsError
from concilia_client_node.store import NodeFolder

Check = Callable[[], None]
Tell = Callable[[], None]
"""Told before something is downloaded."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Seconds and bytes that it took; `trunk` is where an adapter's trunk lies, None where there is none."""

    seconds: float
    bytes: int
    trunk: Path | None = None


def artifact(consortium: Consortium, folder: NodeFolder, digest: str, check: Check, tell: Tell) -> Fetched:
    """Have a model, or what a strategy remembers, in the folder, to be read at once. What is there was checked when it
    came. Raises `Problem`, `WeightsError`, what `check` raises, and `OSError`."""
    began, size = time.monotonic(), 0
    if not folder.use_base(digest):
        tell()
        size = consortium.fetch(digest, folder.base(digest), check)
        folder.use_base(digest)
    return Fetched(time.monotonic() - began, size)


def model(consortium: Consortium, folder: NodeFolder, digest: str, check: Check, tell: Tell) -> Fetched:
    """Have a model in the folder, and its trunk where it is an adapter. Raises as `artifact`."""
    found = artifact(consortium, folder, digest, check, tell)
    try:
        said = Adapter.of(TensorFile.open(folder.base(digest)).header.metadata)
    except MalformedFile:
        return found  # whoever reads the rest of it says so
    except ValueError as error:
        raise WeightsError(f"the base model cannot be used: {error}") from error
    if said is None:
        return found
    began, size, path = time.monotonic(), 0, folder.trunk(said.trunk)
    if not folder.use_trunk(said.trunk):
        tell()
        size = consortium.fetch(said.trunk, path, check, what="base model's trunk")
        folder.use_trunk(said.trunk)
    return Fetched(found.seconds + time.monotonic() - began, found.bytes + size, path)

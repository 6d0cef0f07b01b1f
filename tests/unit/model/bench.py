"""A store to look after, for tests of what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.wire.models import Artifact
from concilia_model.artifacts import DirectoryStore
from concilia_model.integrity import Integrity
from concilia_model.store import Store
from concilia_model.upkeep import DirectoryUpkeep

ALICE = "0x00000000000000000000000000000000000000A1"


class Bench:
    """A store to look after under some keys, on a clock that is told the time, over a folder and a database that others
    of other keys may share."""

    def __init__(
        self,
        folder: Path,
        engine: Any,
        keys: Keyring = NO_KEYS,
        *,
        now: float = 1000.0,
        rate: float = 1000,
        max_bytes: int = 2**30,
    ) -> None:
        self.now = now
        self.folder = folder
        self.files = DirectoryStore(folder, max_bytes, 0, keys)
        self.files.prepare()
        self.upkeep = DirectoryUpkeep(folder, keys)
        self.store = Store(engine)
        self.integrity = Integrity(self.files, self.upkeep, self.store, scrub_rate=rate, clock=lambda: self.now)

    def put(self, digest: str, content: bytes) -> Path:
        with self.files.create() as incoming:
            incoming.write([content])
            self.store.bring(digest, self.now)
            incoming.commit()
        artifact = Artifact(digest=digest, size=len(content), owner=ALICE, tensors=1)
        self.store.record(artifact, shared=False, now=self.now)
        return self.files.path(digest)

    def content(self, digest: str) -> bytes:
        with self.files.open(digest) as file:
            return b"".join(file.pieces())

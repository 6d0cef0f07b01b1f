"""The key of a round's noise, made, stored and found again: the edge around `noising`.

It is stored, and which updates it is for is remembered (`noisekeys`), before anything is folded with it. So a crash
leaves a key that nothing was made of, or one that the same updates are folded with again, to the same bytes. A closed
round's model is made again with the key that it had, or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from concilia_kit import logs
from concilia_kit.storedfile import digest_of
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.chain import LedgerRound, RoundStatus

from concilia_aggregator import noising
from concilia_aggregator.artifacts import ArtifactNotFound, Artifacts
from concilia_aggregator.errors import NoiseKeyLost

_log = logs.get(__name__)


class Remembered(Protocol):
    """See `noisekeys.NoiseKeys`."""

    def known(self, job: str, round_: int, contributions: str) -> str | None:
        """The key that a round's contributions, by their digest, were given."""
        ...

    def keep(self, job: str, round_: int, contributions: str, key: str) -> None:
        """Give contributions a key, in place of the one that they had."""
        ...


class Keying:
    """Keys of rounds' noise. Files on their way lie in `directory`, sealed where the store's are."""

    def __init__(self, artifacts: Artifacts, directory: Path, remembered: Remembered) -> None:
        self._artifacts = artifacts
        self._directory = directory
        self._remembered = remembered

    def of(self, recorded: LedgerRound, contributions: str) -> tuple[str, bytes]:
        """The key for a round's contributions, by their digest, and its artifact's digest. Raises `NoiseKeyLost` where
        the round is over and its key is gone, `Problem`, `OSError`."""
        known = self._remembered.known(recorded.job, recorded.round, contributions)
        if known is not None and (key := self._stored(known)) is not None:
            return known, key
        if recorded.status is not RoundStatus.OPEN:
            raise NoiseKeyLost("the key of the round's noise is gone, so that its model cannot be made again")
        if known is not None:
            # A model that was made with it may lie in the store, but nobody was told of it: no closing names it yet,
            # or else the ledger's word counts when it is read again.
            _log.warning("key of noise lost, another is made", job=recorded.job, round=recorded.round)
        return self._new(recorded, contributions)

    def _new(self, recorded: LedgerRound, contributions: str) -> tuple[str, bytes]:
        path = self._directory / f"{recorded.job[:16]}-{recorded.round}.key"
        try:
            digest = noising.write_key(path, self._artifacts.keys)
            key = noising.read_key(TensorFile.open(path, self._artifacts.keys))
            self._artifacts.put(digest, path)
        finally:
            path.unlink(missing_ok=True)
        self._remembered.keep(recorded.job, recorded.round, contributions, digest)
        return digest, key

    def _stored(self, digest: str) -> bytes | None:
        """A key as the store has it; None where it lost it."""
        try:
            path = self._artifacts.fetch(digest)
            if digest_of(path, self._artifacts.keys) != digest:
                self._artifacts.is_intact(digest)  # what has changed is put aside
                return None
            return noising.read_key(TensorFile.open(path, self._artifacts.keys))
        except (ArtifactNotFound, FileNotFoundError, MalformedFile):
            return None
        finally:
            self._artifacts.release(digest)

"""A store's file read by position, whether it is sealed or lies as it is (`sealing`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from concilia_kit.sealing import OVERHEAD, Keyring, Seal, SealingKeyUnknown, is_sealed

PIECE = 2**20
"""Bytes read, and decrypted, at a time."""


class StoredFile:
    """An open file. Positions and `size` are the content's, without what a seal adds. `seal` is None where the file
    lies as it is, or is taken so for want of `keys`. A context manager; reading is safe from several threads."""

    def __init__(self, descriptor: int, keys: Keyring | None) -> None:
        """Takes the descriptor over. Raises `SealingKeyUnknown`, `OSError`."""
        self.descriptor = descriptor
        try:
            self.seal: Seal | None = None if keys is None else keys.of(os.pread(descriptor, OVERHEAD, 0))
            self.stat = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self.begin = 0 if self.seal is None else OVERHEAD
        self.size = self.stat.st_size - self.begin

    @classmethod
    def open(cls, path: Path, keys: Keyring | None) -> Self:
        """Raises `SealingKeyUnknown`, `OSError`."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes of the content from `offset` on; fewer at its end. Raises `OSError`."""
        found = os.pread(self.descriptor, count, self.begin + offset)
        return found if self.seal is None else self.seal.at(offset)(found)

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The content from `begin` to `end`, or to its own end, in pieces of up to `PIECE` bytes. Raises `OSError`."""
        while end is None or begin < end:
            piece = self.read(begin, PIECE if end is None else min(PIECE, end - begin))
            if not piece:
                return
            yield piece
            begin += len(piece)


def digest_of(path: Path, keys: Keyring | None) -> str:
    """SHA-256 of a file's content, read once. Raises `SealingKeyUnknown`, `OSError`."""
    with StoredFile.open(path, keys) as file:
        hasher = hashlib.sha256()
        for piece in file.pieces():
            hasher.update(piece)
        return hasher.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file's content, whatever key it is sealed under. Raises `OSError`."""
    with path.open("rb", buffering=0) as file:
        return os.fstat(file.fileno()).st_size - (OVERHEAD if is_sealed(file.read(OVERHEAD)) else 0)


def carried_on(descriptor: int, keys: Keyring) -> tuple[Seal | None, int] | None:
    """How a file is gone on with of which a part has come: its seal, and the bytes of content that it has.

    None where it is begun anew: it has none, was begun before there was a key, or is sealed under one that is not at
    hand. Raises `OSError`.
    """
    size = os.fstat(descriptor).st_size
    try:
        seal = keys.of(os.pread(descriptor, OVERHEAD, 0)) if size else None
    except SealingKeyUnknown:
        return None
    if seal is None:
        return None if size == 0 or keys.current is not None else (None, size)
    return seal, size - OVERHEAD

"""Whether an update may be averaged: pure checks of mapped tensors against the base model.

Rules, in the order they apply: the file's digest, same names, same shapes, same dtypes, a credible sample count, only
finite values, a bounded distance from the base. The first that fails is the reason that goes on the chain.

An update's bytes are read once: what is hashed is measured while it is in the processor's cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from concilia_kit.encodings import Plain, Reader, reader
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec
from concilia_kit.wire.chain import Reason

from concilia_aggregator import exact

_BLOCK = 1 << 16  # elements: update, base and hash go over 512 KB
_RESIDENT = 4 << 20  # bytes of an update and of its base that may be in memory before they are given back


class Hash(Protocol):
    """What takes a file's bytes in passing."""

    def update(self, data: Any, /) -> None:
        """Take more bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What screening tolerates.

    `max_samples`: most samples an update may claim at all; `max_norm_ratio`: most it may move the model, in multiples
    of the base model's L2 norm.
    """

    max_samples: int
    max_norm_ratio: float


@dataclass(frozen=True, slots=True)
class Base:
    """A base model and its L2 norm over all float tensors, which all of a round's updates are measured by."""

    file: TensorFile
    norm: float

    @classmethod
    def of(cls, file: TensorFile) -> Base:
        """Reads the file once."""
        return cls(file, math.sqrt(_squares(Plain(file), file, None, _Nowhere())))


def screen(
    update: TensorFile,
    base: Base,
    samples: int,
    registered_samples: int | None,
    limits: Limits,
    digest: str | None = None,
) -> Reason | None:
    """Why an update is left out, or None where it is fine.

    `registered_samples` is the training images the hospital's node registered, where it did; `digest` the SHA-256 that
    the file must have, None where nobody says.
    """
    hasher = hashlib.sha256()
    reason: Reason | None = None
    read: Reader | None = None
    moved = 0.0
    try:
        read = reader(update, base.file)
        reason = _misfit(read.tensors, base.file.header.tensors) or _count(samples, registered_samples, limits)
    except MalformedFile:
        reason = Reason.MALFORMED_FILE
    if reason is None and isinstance(read, Plain):
        moved = _squares(read, update, base.file, hasher)
    else:
        passed = 0
        for piece in update.raw():
            hasher.update(piece)
            passed += len(piece)
            if passed % _RESIDENT == 0:
                update.forget()
        update.forget()
        if reason is None and read is not None:
            try:
                moved = _squares(read, update, base.file, _Nowhere())
            except MalformedFile:
                reason = Reason.MALFORMED_FILE
    if digest is not None and hasher.hexdigest() != digest:
        return Reason.DIGEST_MISMATCH
    return reason or _step(moved, base.norm, limits)


def _misfit(given: Mapping[str, TensorSpec], base: Mapping[str, TensorSpec]) -> Reason | None:
    if set(given) != set(base):
        return Reason.NAME_MISMATCH
    for name, spec in base.items():
        if given[name].shape != spec.shape:
            return Reason.SHAPE_MISMATCH
        if given[name].dtype != spec.dtype:
            return Reason.DTYPE_MISMATCH
    return None


def _count(samples: int, registered: int | None, limits: Limits) -> Reason | None:
    most = limits.max_samples if registered is None else min(limits.max_samples, registered)
    return None if 0 < samples <= most else Reason.SAMPLE_COUNT


def _step(squares: float, norm: float, limits: Limits) -> Reason | None:
    if not math.isfinite(squares):
        return Reason.NON_FINITE
    # A fresh base may be all zero; one unit then stands for its norm.
    return Reason.NORM_TOO_LARGE if math.sqrt(squares) > limits.max_norm_ratio * max(norm, 1.0) else None


class _Nowhere:
    def update(self, data: Any, /) -> None:
        """Taken by nobody."""


def _squares(read: Reader, file: TensorFile, base: TensorFile | None, hasher: Hash) -> float:
    """The squared L2 norm of (update - base), or of the update alone, over all float tensors, block by block in the
    order of the file, so that it is the same however many are measured at a time; not finite if any value is not.

    `hasher` takes the bytes of a file that is read as it lies (`Plain`).
    """
    squares, passed = 0.0, 0
    theirs = None if base is None else Plain(base)
    if isinstance(read, Plain):
        for piece in file.raw(file.header.data_start):
            hasher.update(piece)
    for name, spec in read.tensors.items():
        for start in range(0, spec.size, _BLOCK):
            stop = min(start + _BLOCK, spec.size)
            block = read.block(name, start, stop)
            hasher.update(np.ascontiguousarray(block).data)
            if np.issubdtype(spec.dtype, np.floating):
                squares += exact.squared_distance(block, None if theirs is None else theirs.block(name, start, stop))
            passed += (stop - start) * spec.dtype.itemsize
            if passed >= _RESIDENT:
                passed = 0
                file.forget()
                if base is not None:
                    base.forget()
    file.forget()
    return squares

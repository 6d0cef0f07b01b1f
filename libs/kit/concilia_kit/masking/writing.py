"""A trained model written as a masked update: a safetensors file with the base's floating tensors, as int32 words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from concilia_kit.masking.errors import MaskingError
from concilia_kit.masking.graph import graph
from concilia_kit.masking.stream import Mask, Stream
from concilia_kit.masking.words import PIECE, WORD, Array, Scale, block_of, floating
from concilia_kit.tensorfile import TensorFile, TensorSpec, TensorWriter
from concilia_kit.wire.masking import Roster

METADATA = "concilia.masked"
"""Metadata key of a masked update: the digest of the roster that it is masked by."""

_KEPT = 1 << 22  # bytes of the base that are read before they are given back


@dataclass(frozen=True, slots=True)
class WrittenMasked:
    """A masked update's file: SHA-256, bytes, bytes that the base's tensors have, how many values were cut off at the
    bound, and the change's length (L2) before that, shortened where it was (None where no `norm` was asked for)."""

    digest: str
    size: int
    size_plain: int
    clipped: int
    length: float | None


def write(
    path: Path,
    tensors: Mapping[str, Array],
    base: TensorFile,
    masks: Sequence[Mask],
    roster: Roster,
    *,
    samples: int,
    bound: float,
    norm: float | None = None,
) -> WrittenMasked:
    """Write a masked update block by block. It may be gone after a power cut: whoever keeps it sees to it that
    it lasts.

    `tensors`: the trained model, all of the base's; integer ones are not sent. `masks` as `participant.masks` gives
    them. `samples`: what it weighs, at most what the keys said of this hospital (the caller sees to that). `bound`,
    `norm` as in `SecureAggregation`: what changes by more than the bound is cut off, a change that is longer than
    `norm` is shortened to it first.

    Raises `MaskingError` where names, shapes and dtypes are not the base's, a value is not finite, there are no masks,
    or samples are more than the roster's, `OSError`.
    """
    specs = base.header.tensors
    if {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} != {
        name: (spec.dtype, spec.shape) for name, spec in specs.items()
    }:
        raise MaskingError("the trained tensors are not the base's in name, shape and dtype")
    if not masks:
        raise MaskingError("no update is written without masks")
    if not 1 <= samples <= roster.samples:
        raise MaskingError(f"{samples} samples do not fit a roster of {roster.samples}")
    names = floating(base)
    scale = Scale.of(roster, bound, base)
    length = None if norm is None else _length(names, tensors, base)
    shortened = 1.0 if norm is None or length is None or length <= norm else norm / length
    making = _Making(scale, Stream(masks), samples, shortened)
    masked = {name: TensorSpec(WORD, specs[name].shape) for name in names}
    with TensorWriter(path, masked, {METADATA: graph(roster).digest}, lasting=False) as writer:
        assert writer.order == names, "of one dtype, tensors are in the order of their names"
        for block in making.words(_changes(names, tensors, base)):
            writer.append(block)
    size_plain = sum(spec.nbytes for spec in specs.values())
    return WrittenMasked(
        writer.digest, path.stat().st_size, size_plain, making.clipped, None if length is None else length * shortened
    )


def roster_of(file: TensorFile) -> str | None:
    """Digest of the roster that a file says it is masked by; None where it is no masked update."""
    return file.header.metadata.get(METADATA)


def masked_like(file: TensorFile, base: TensorFile) -> bool:
    """Whether a file has exactly the base's floating tensors, in their shapes, as int32: what screening of a secure
    round goes by beside digest and samples."""
    given = {name: (spec.dtype, spec.shape) for name, spec in file.header.tensors.items()}
    return given == {name: (WORD, base.header.tensors[name].shape) for name in floating(base)}


class _Making:
    """Makes words of changes, and masks them. `clipped`: how many were cut off so far."""

    def __init__(self, scale: Scale, stream: Stream, samples: int, shortened: float) -> None:
        self._scale, self._stream = scale, stream
        self._samples, self._shortened = samples, shortened
        self.clipped = 0

    def words(self, changes: Iterable[tuple[str, Array]]) -> Iterator[Array]:
        """Masked words of each block, each good until the next one is asked for."""
        room = np.empty(PIECE, WORD)
        for name, change in changes:
            if self._shortened != 1.0:
                np.multiply(change, self._shortened, out=change)
            block = room[: change.size]
            self.clipped += self._scale.quantise(name, change, self._samples, block)
            self._stream.onto(block)
            yield block


def _changes(names: Sequence[str], tensors: Mapping[str, Array], base: TensorFile) -> Iterator[tuple[str, Array]]:
    """What changed, in float64, block by block, each good until the next one is asked for."""
    room = np.empty(PIECE)
    passed = 0
    for name in names:
        flat = tensors[name].reshape(-1)
        for start in range(0, flat.size, PIECE):
            stop = min(start + PIECE, flat.size)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
                yield (
                    name,
                    np.subtract(
                        flat[start:stop], block_of(base, name, start, stop), out=room[: stop - start], dtype=np.float64
                    ),
                )
            passed += (stop - start) * flat.itemsize
            if passed >= _KEPT:
                passed = 0
                base.forget()
    base.forget()


def _length(names: Sequence[str], tensors: Mapping[str, Array], base: TensorFile) -> float:
    squares = math.fsum(float(np.dot(change, change)) for _name, change in _changes(names, tensors, base))
    if not math.isfinite(squares):
        raise MaskingError("the change is not finite, or longer than can be told")
    return math.sqrt(squares)

"""Partial sums: what some of a round's updates come to, in files that combine to the very bytes of folding all at once.

A partial sum is two safetensors files. `KEY.sums` has each floating tensor's sum as float64, the largest value of each
other tensor, and how many samples are behind it. `KEY.rest` has what one float64 did not hold: places, counted over
all floating tensors in the order of their names, and further float64s to add there. The key is the SHA-256 of what went
in, so that whoever made it, it is the same. `KEY.rest` comes last: where it is, both are whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from concilia_kit import digests
from concilia_kit.encodings import Plain
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec, TensorWriter, write

from concilia_aggregator import exact
from concilia_aggregator.exact import Sum
from concilia_aggregator.strategies.base import fold_integers
from concilia_aggregator.windows import Input, Window, stream

GROUP = 16
"""Updates in one partial sum. It takes the room of two of them, so that reading it is an eighth of the work."""

MOST_REST = 1 << 21
"""Float64s beyond the first that a partial sum may need, 32 MB with their places. Of honest updates a few in a thousand
elements need one at most, and who sends others shall not fill the disk."""

_FORM = "partial-1"
_SAMPLES, _DTYPES = "concilia.samples", "concilia.dtypes"

Array = npt.NDArray[Any]


class Member(NamedTuple):
    """An update in a partial sum: its digest, and the samples it counts for."""

    digest: str
    samples: int


class TooMuchRest(ValueError):
    """Sums that float64 does not hold in too many places to be worth it: the updates are folded themselves."""


def key(base: str, members: Sequence[Member]) -> str:
    """The SHA-256 that names the sum of these updates of a base, in any order."""
    return digests.of_json(
        {"form": _FORM, "base": base, "members": sorted([each.digest, each.samples] for each in members)}
    )


def make(
    updates: Sequence[TensorFile],
    samples: Sequence[int],
    base: TensorFile,
    folder: Path,
    name: str,
    keys: Keyring = NO_KEYS,
) -> None:
    """Add up updates into the partial sum of that name. The files are there when this returns, and not before; they are
    sealed where `keys` have a current one.

    Raises `ValueError` where no exact sums are kept of them, `NotFinite`, `MalformedFile`, `OSError`.
    """
    inputs = [Input.open(update, base) for update in updates]
    given = inputs[0].reader.tensors
    floats = {each: spec for each, spec in given.items() if np.issubdtype(spec.dtype, np.floating)}
    if not all(exact.is_summed(spec.dtype, samples) for spec in floats.values()):
        raise ValueError("no exact sums are kept of such tensors and samples")
    specs = {
        each: TensorSpec(np.dtype("<f8") if each in floats else spec.dtype, spec.shape) for each, spec in given.items()
    }
    metadata = {_SAMPLES: str(sum(samples)), _DTYPES: ",".join(floats[each].dtype.str for each in sorted(floats))}
    begins = _begins(floats)
    at: list[Array] = []
    rest: list[Array] = []

    def summed(window: Window) -> tuple[Window, Array | Sum]:
        blocks = [each.block(window) for each in inputs]
        return window, exact.weighted_sum(blocks, samples) if window[0].name in floats else fold_integers(blocks)

    folder.mkdir(parents=True, exist_ok=True)
    with TensorWriter(folder / f"{name}.sums", specs, metadata, keys=keys) as writer:
        for window, found in stream(inputs, given, writer.order, summed):
            if not isinstance(found, Sum):
                writer.append(found)
                continue
            writer.append(found.values)
            at.append(_moved(found.at, window, begins))
            rest.append(found.rest)
            if sum(each.size for each in at) > MOST_REST:
                raise TooMuchRest(f"{name} has too much that float64 does not hold")
    base.forget()
    places, values = np.concatenate([np.empty(0, np.int64), *at]), np.concatenate([np.empty(0), *rest])
    order = np.argsort(places, kind="stable")
    write(folder / f"{name}.rest", {"at": places[order], "rest": values[order]}, keys=keys)


def is_there(folder: Path, name: str) -> bool:
    """Whether a partial sum is whole."""
    return (folder / f"{name}.rest").exists()


def remove(folder: Path, name: str) -> None:
    """Remove a partial sum, whole or not."""
    for end in ("rest", "sums"):
        (folder / f"{name}.{end}").unlink(missing_ok=True)


def sweep(folder: Path, before: float) -> None:
    """Remove all files that were last written before a moment (Unix seconds)."""
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another sweeps too
            if path.stat().st_mtime < before:
                path.unlink()


@dataclass(frozen=True)
class Partial:
    """A partial sum, mapped."""

    input: Input
    samples: int
    tensors: Mapping[str, TensorSpec]
    _at: Array
    _rest: Array
    _begins: Mapping[str, int]

    @classmethod
    def open(cls, folder: Path, name: str, keys: Keyring = NO_KEYS) -> Partial:
        """Raises `MalformedFile`, `SealingKeyUnknown`, `OSError`."""
        sums, rest = (TensorFile.open(folder / f"{name}.{end}", keys) for end in ("sums", "rest"))
        floats = sorted(each for each, spec in sums.header.tensors.items() if spec.dtype == np.float64)
        try:
            samples = int(sums.header.metadata[_SAMPLES])
            dtypes = [np.dtype(each) for each in sums.header.metadata[_DTYPES].split(",") if each]
            found = dict(zip(floats, dtypes, strict=True))
            at, values = rest.flat("at").copy(), rest.flat("rest").copy()
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedFile(f"{name} is no partial sum") from error
        tensors = {
            each: TensorSpec(found.get(each, spec.dtype), spec.shape) for each, spec in sums.header.tensors.items()
        }
        return cls(Input(sums, Plain(sums)), samples, tensors, at, values, _begins(tensors, found))

    def block(self, window: Window) -> Array:
        """The largest values in a window of tensors that are not floating."""
        return self.input.block(window)

    def sum(self, window: Window) -> Sum:
        """The sum in a window of floating tensors."""
        at: list[Array] = []
        rest: list[Array] = []
        position = 0
        for each in window:
            begin = self._begins[each.name]
            low, high = np.searchsorted(self._at, (begin + each.start, begin + each.stop))
            at.append(self._at[low:high] - (begin + each.start) + position)
            rest.append(self._rest[low:high])
            position += each.stop - each.start
        return Sum(self.input.block(window), np.concatenate(at), np.concatenate(rest))


def _begins(specs: Mapping[str, TensorSpec], names: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Where each tensor begins when all of these are laid one after another, by name."""
    begins, position = {}, 0
    for name in sorted(specs if names is None else names):
        begins[name] = position
        position += specs[name].size
    return begins


def _moved(at: Array, window: Window, begins: Mapping[str, int]) -> Array:
    """Places in a window as places among all floating tensors."""
    moved = np.empty_like(at)
    position = 0
    for each in window:
        length = each.stop - each.start
        inside = (at >= position) & (at < position + length)
        moved[inside] = at[inside] - position + begins[each.name] + each.start
        position += length
    return moved

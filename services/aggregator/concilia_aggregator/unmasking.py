"""Masked updates added up, unmasked and decoded block by block: a mean model of each group, which strategies then fold.

Who verifies does the same from a model's file, which keeps the seeds (`Unmasking`), to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from concilia_kit.masking import Mask, MaskingError, check_unmasking, graph, masked_like, roster_of, total_masks
from concilia_kit.masking.stream import Stream
from concilia_kit.masking.words import WORD, Array, Scale, block_of, floating
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.tensorfile import TensorFile, TensorSpec, TensorWriter
from concilia_kit.wire.masking import Unmasking

from concilia_aggregator.windows import Input, stream

_PIECE = 1 << 16
"""Words at a time: sum, update and keystream stay in a processor's second cache."""
_GIVEN = 2 << 20  # bytes of each update after which they are given back


class Mean:
    """A `Reader` of a group's mean model, made where it is read. Integer tensors are the base's.

    Safe to be read by several threads; no bit depends on who reads which part when.
    """

    def __init__(
        self, updates: Sequence[TensorFile], samples: int, masks: Sequence[Mask], scale: Scale, base: TensorFile
    ) -> None:
        """`samples`: of all of the updates together."""
        self._updates, self._base = updates, base
        self._samples, self._masks, self._scale = samples, masks, scale
        names = floating(base)
        sizes = (base.header.tensors[name].size for name in names)
        self._begins = dict(zip(names, accumulate(sizes, initial=0), strict=False))
        self._passed = 0

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See `Reader`."""
        return self._base.header.tensors

    def block(self, name: str, start: int, stop: int) -> Array:
        """See `Reader`."""
        base = block_of(self._base, name, start, stop)
        if name not in self._begins:
            return base
        result = np.empty_like(base)
        masks = Stream(self._masks, self._begins[name] + start, off=True)
        room = np.empty(min(_PIECE, base.size), WORD)
        for begin in range(0, base.size, _PIECE):
            end = min(begin + _PIECE, base.size)
            sums = room[: end - begin]
            np.copyto(sums, block_of(self._updates[0], name, start + begin, start + end))
            for each in self._updates[1:]:
                np.add(sums, block_of(each, name, start + begin, start + end), out=sums)  # modulo 2**32
            masks.onto(sums)
            result[begin:end] = self._scale.decode(name, sums, self._samples, base[begin:end])
        self._forget(base.size * WORD.itemsize)
        return result

    def _forget(self, passed: int) -> None:
        """Give back what was read, now and then; another thread that is at it reads it once more."""
        self._passed += passed
        if self._passed >= _GIVEN:
            self._passed = 0
            for each in self._updates:
                each.forget()


def readers(
    updates: Sequence[TensorFile], samples: Sequence[int], unmasking: Unmasking, base: TensorFile
) -> tuple[list[Input], list[int]]:
    """The mean model of each group, made where it is read, and the samples behind each.

    `updates` and `samples` are those of `unmasking.survivors`, in that order. Memory is a small constant, whatever the
    number of updates, but for 2 MB of each file that are mapped at a time.

    Raises `MaskingError` where updates are not the survivors', not of the roster or of the base, samples are more than
    their keys said, or `unmasking` does not hold (`check_unmasking`).
    """
    check_unmasking(unmasking)
    its = graph(unmasking.roster)
    if not len(updates) == len(samples) == len(unmasking.survivors):
        raise MaskingError(f"{len(updates)} updates are not those of {len(unmasking.survivors)} survivors")
    for update, count, hospital in zip(updates, samples, unmasking.survivors, strict=True):
        if roster_of(update) != its.digest or not masked_like(update, base):
            raise MaskingError(f"{update.path.name} is not masked by this roster, or of another base")
        if not 1 <= count <= unmasking.roster.members[its.index[hospital]].keys.samples:
            raise MaskingError(f"{hospital} has more samples than its keys said, or none")
    scale = Scale.of(unmasking.roster, unmasking.bound, base)
    found: list[Input] = []
    behind: list[int] = []
    for group in range(len(its.groups)):
        of = [at for at, each in enumerate(unmasking.survivors) if its.group_of[its.index[each]] == group]
        behind.append(sum(samples[at] for at in of))
        mean = Mean([updates[at] for at in of], behind[-1], total_masks(unmasking, group), scale, base)
        found.append(Input(base, mean))
    return found, behind


def means(
    updates: Sequence[TensorFile],
    samples: Sequence[int],
    unmasking: Unmasking,
    base: TensorFile,
    folder: Path,
    keys: Keyring = NO_KEYS,
    threads: int | None = None,
) -> tuple[list[TensorFile], list[int]]:
    """As `readers`, in files `mean-N` in `folder`, for who reads them more than once. They are sealed where `keys` have
    a current one. Neither threads nor machine change a bit.

    Raises `MaskingError`, `MalformedFile`, `OSError`.
    """
    found, behind = readers(updates, samples, unmasking, base)
    files: list[TensorFile] = []
    for group, mean in enumerate(found):
        path = folder / f"mean-{group}"
        specs = mean.reader.tensors
        with TensorWriter(path, specs, lasting=False, keys=keys) as writer:
            for block in stream([mean], specs, writer.order, mean.block, threads):
                writer.append(block)  # written while the next ones are computed
        files.append(TensorFile.open(path, keys))
    return files, behind

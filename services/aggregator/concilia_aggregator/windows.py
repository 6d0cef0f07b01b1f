"""Reading updates window by window over memory maps: computed by several threads, taken in order, given back behind.

A window is a stretch of a large tensor, or several small ones, of all updates at once. How many bytes that is does not
grow with the number of updates.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from concilia_kit.encodings import Plain, Reader, reader
from concilia_kit.tensorfile import TensorFile, TensorSpec

MAPPED, DECODED = 16 << 20, 12 << 20
"""Bytes of updates that are worked at at a time, over all threads and updates: where all are mapped, and where some are
encoded, whose blocks take memory of this process."""

GROUP = 64
"""Updates that are added up at a time."""

_MOST, _LEAST = 1 << 17, 1 << 13  # elements of a window
_LEAST_OF_GROUP = 1 << 16  # each block is some microseconds of Python, in which no other thread makes one
_PACKED = 1 << 14  # elements up to which tensors share a window
_GIVEN = 1 << 21  # bytes of an update after which they are given back: what the system maps at once
_GIVEN_ENCODED = 8 << 20  # the same of the model that an encoded one stands for

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements `start` to `stop` of a tensor."""

    name: str
    start: int
    stop: int


Window = tuple[Stretch, ...]
"""Stretches of one dtype that are worked at at a time: a part of a large tensor, or several small ones."""


@dataclass(frozen=True, slots=True)
class Input:
    """An update's file and how it is read."""

    file: TensorFile
    reader: Reader

    @classmethod
    def open(cls, file: TensorFile, base: TensorFile | None) -> Input:
        """Raises `MalformedFile`, `ValueError` where it is encoded and there is no base."""
        read = reader(file, base if base is not None else file)
        if base is None and not isinstance(read, Plain):
            raise ValueError(f"{file.path.name} is encoded and can be read with its base only")
        return cls(file, read)

    def block(self, window: Window) -> npt.NDArray[Any]:
        """The window's elements, one after another. Raises `KeyError`, `MalformedFile`."""
        blocks = [self.reader.block(each.name, each.start, each.stop) for each in window]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


class _Behind:
    """What was read of some inputs that have every tensor at the same place, and is to be given back as windows end.

    Places are of the file, or of the model that an encoded one stands for.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = inputs
        self._specs = inputs[0].reader.tensors
        self._is_plain = isinstance(inputs[0].reader, Plain)
        self._begin = self._end = 0

    @classmethod
    def of(cls, inputs: Sequence[Input]) -> list[_Behind]:
        """Few for many: updates of a round are written in one order."""
        alike: dict[tuple[Any, ...], list[Input]] = {}
        for each in inputs:
            places = tuple((name, spec.begin) for name, spec in each.reader.tensors.items())
            alike.setdefault((isinstance(each.reader, Plain), places), []).append(each)
        return [cls(some) for some in alike.values()]

    def forget(self, window: Window) -> None:
        """The window is done with: give its pages back, many at a time."""
        for each in window:
            spec = self._specs[each.name]
            begin = spec.begin + each.start * spec.dtype.itemsize
            if begin != self._end:
                self._give(0)
                self._begin = begin
            self._end = spec.begin + each.stop * spec.dtype.itemsize
        self._give(_GIVEN)

    def _give(self, least: int) -> None:
        if self._end - self._begin <= (least if self._is_plain else _GIVEN_ENCODED):
            return
        last = self._end
        for each in self._inputs:
            if self._is_plain:
                last = each.file.forget(self._begin, self._end)
            else:
                each.file.forget()
        self._begin = last


def windows(specs: Mapping[str, TensorSpec], order: Sequence[str], size: int) -> Iterator[Window]:
    """All elements of all tensors in this order, by windows of at most `size` elements."""
    packed: list[Stretch] = []
    held = 0
    for name in order:
        spec = specs[name]
        is_small = spec.size <= min(_PACKED, size)
        if packed and (not is_small or held + spec.size > size or specs[packed[0].name].dtype != spec.dtype):
            yield tuple(packed)
            packed, held = [], 0
        if is_small:
            if spec.size:
                packed.append(Stretch(name, 0, spec.size))
                held += spec.size
            continue
        for start in range(0, spec.size, size):
            yield (Stretch(name, start, min(start + size, spec.size)),)
    if packed:
        yield tuple(packed)


def stream(
    inputs: Sequence[Input],
    specs: Mapping[str, TensorSpec],
    order: Sequence[str],
    work: Callable[[Window], T],
    threads: int | None = None,
    together: int | None = None,
) -> Iterator[T]:
    """What `work` makes of each window, in order, while the next ones are under way in threads (one a processor).

    `specs`: the tensors that all inputs stand for. `together`: of how many inputs `work` holds blocks at a time, all of
    them by default. Results are taken meanwhile. What `work` raises is raised.
    """
    together = together or len(inputs)
    threads = threads or len(os.sched_getaffinity(0))
    is_mapped = all(isinstance(each.reader, Plain) for each in inputs)
    room = MAPPED if is_mapped else DECODED
    least = _LEAST_OF_GROUP if is_mapped and together <= GROUP else _LEAST
    size = min(max(room // (threads * together * 4), least), _MOST)
    behind = _Behind.of(inputs)
    with ThreadPoolExecutor(threads, thread_name_prefix="window") as pool:
        ahead: deque[tuple[Window, Future[T]]] = deque()
        for window in windows(specs, order, size):
            ahead.append((window, pool.submit(work, window)))
            if len(ahead) > threads:
                yield _finished(behind, ahead)
        while ahead:
            yield _finished(behind, ahead)
    for each in inputs:
        each.file.forget()


def _finished(behind: Sequence[_Behind], ahead: deque[tuple[Window, Future[T]]]) -> T:
    window, result = ahead.popleft()
    done = result.result()
    for each in behind:
        each.forget(window)
    return done

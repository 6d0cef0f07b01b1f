"""Reading updates window by window over memory maps: computed by several threads, taken in order, given back behind.

A window is so many elements of all updates at once, of one tensor or of several that follow one another: files of one
layout have those in one piece. How many bytes that is does not grow with the number of updates.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from concilia_kit.encodings import Plain, Reader, reader
from concilia_kit.tensorfile import TensorFile, TensorSpec

MAPPED, DECODED = 16 << 20, 12 << 20
"""Bytes of updates that are worked at at a time, over all threads and updates: where all are mapped, and where some are
encoded or sealed, whose blocks take memory of this process."""

GROUP = 64
"""Updates that are added up at a time."""

_MOST, _LEAST = 1 << 17, 1 << 13  # elements of a window
_LEAST_OF_GROUP = 1 << 16  # each block is some microseconds of Python, in which no other thread makes one
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
"""Stretches of one dtype, one after another, that are worked at at a time."""


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
        if len(window) == 1:
            return self.reader.block(window[0].name, window[0].start, window[0].stop)
        if isinstance(self.reader, Plain) and (found := self._piece(window)) is not None:
            return found
        return np.concatenate([self.reader.block(each.name, each.start, each.stop) for each in window])

    def _piece(self, window: Window) -> npt.NDArray[Any] | None:
        """The window's elements where they lie in one piece, as they do in files of the layout that is written."""
        specs = self.file.header.tensors
        dtype = specs[window[0].name].dtype
        begin = end = specs[window[0].name].begin + window[0].start * dtype.itemsize
        for each in window:
            spec = specs[each.name]
            if spec.begin + each.start * dtype.itemsize != end or spec.dtype != dtype:
                return None
            end = spec.begin + each.stop * dtype.itemsize
        return self.file.piece(dtype, begin, end)


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


def windows(
    specs: Mapping[str, TensorSpec], order: Sequence[str], size: int, *, apart: bool = False
) -> Iterator[Window]:
    """All elements of all tensors in this order, `size` at a time; fewer at the end, and before another dtype, or
    before each tensor where they are kept `apart`."""
    window: list[Stretch] = []
    room = size
    for name in order:
        spec = specs[name]
        if window and (apart or spec.dtype != specs[window[0].name].dtype):
            yield tuple(window)
            window, room = [], size
        start = 0
        while start < spec.size:
            stop = min(spec.size, start + room)
            window.append(Stretch(name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield tuple(window)
                window, room = [], size
    if window:
        yield tuple(window)


def stream(
    inputs: Sequence[Input],
    specs: Mapping[str, TensorSpec],
    order: Sequence[str],
    work: Callable[[Window], T],
    threads: int | None = None,
    together: int | None = None,
    multiple: int | None = None,
) -> Iterator[T]:
    """What `work` makes of each window, in order, while the next ones are under way in threads (one a processor).

    `specs`: the tensors that all inputs stand for. `together`: of how many inputs `work` holds blocks at a time, all of
    them by default. `multiple`: windows are of one tensor each, and begin at a multiple of so many of its elements.
    Results are taken meanwhile. What `work` raises is raised.
    """
    together = together or len(inputs)
    threads = threads or len(os.sched_getaffinity(0))
    is_mapped = all(isinstance(each.reader, Plain) and not each.file.is_sealed for each in inputs)
    room = MAPPED if is_mapped else DECODED
    least = _LEAST_OF_GROUP if is_mapped and together <= GROUP else _LEAST
    size = min(max(room // (threads * together * 4), least), _MOST)
    if multiple is not None:
        size = max(size // multiple, 1) * multiple
    behind = _Behind.of(inputs)
    with _Workers(work, threads) as workers:
        ahead: deque[Window] = deque()
        for window in windows(specs, order, size, apart=multiple is not None):
            workers.put(window)
            ahead.append(window)
            if len(ahead) > threads:
                yield _finished(workers, behind, ahead.popleft())
        while ahead:
            yield _finished(workers, behind, ahead.popleft())
    for each in inputs:
        each.file.forget()


def _finished(workers: _Workers[T], behind: Sequence[_Behind], window: Window) -> T:
    done = workers.take()
    for each in behind:
        each.forget(window)
    return done


class _Workers(Generic[T]):
    """Threads that do some work for what is put, of which the outcomes are taken in order. A window takes so little
    time that a pool's futures would be a tenth of it."""

    def __init__(self, work: Callable[[Window], T], threads: int) -> None:
        self._work = work
        self._todo: SimpleQueue[tuple[int, Window] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, T | _Failed]] = SimpleQueue()
        self._early: dict[int, T | _Failed] = {}
        self._put = self._taken = 0
        self._threads = [threading.Thread(target=self._run, name=f"window-{at}", daemon=True) for at in range(threads)]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _each in self._threads:
            self._todo.put(None)
        for each in self._threads:
            each.join()

    def put(self, window: Window) -> None:
        """Have a window worked at."""
        self._todo.put((self._put, window))
        self._put += 1

    def take(self) -> T:
        """What the work came to for the first window that was not taken. Raises what the work raised."""
        while self._taken not in self._early:
            at, outcome = self._done.get()
            self._early[at] = outcome
        found = self._early.pop(self._taken)
        self._taken += 1
        if isinstance(found, _Failed):
            raise found.error
        return found

    def _run(self) -> None:
        while (item := self._todo.get()) is not None:
            at, window = item
            try:
                self._done.put((at, self._work(window)))
            except BaseException as error:
                self._done.put((at, _Failed(error)))


class _Failed(NamedTuple):
    """What the work raised."""

    error: BaseException

"""Folding by strategies that look at updates whole, or remember from round to round, with base and state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from concilia_kit.normalisation import STATISTICS
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec
from concilia_kit.wire.metadata import state_name

from concilia_aggregator import exact
from concilia_aggregator.facts import RoundFacts
from concilia_aggregator.measuring import gram
from concilia_aggregator.strategies.base import Block, Stateful, Weighing
from concilia_aggregator.strategies.geometry import Fact, Geometry
from concilia_aggregator.windows import Input, Window, stream


def geometry(
    inputs: Sequence[Input],
    samples: Sequence[int],
    facts: RoundFacts | None,
    specs: Mapping[str, TensorSpec],
    base: TensorFile,
    threads: int | None = None,
) -> Geometry:
    """How the updates lie to each other, measured where it is asked for. Raises `ValueError`."""
    told = [Fact(count) for count in samples] if facts is None else facts.facts(samples)
    start = Input.open(base, base)
    return Geometry(told, lambda: gram(inputs, start, specs, threads), None if facts is None else facts.root)


def weighed(
    strategy: Weighing,
    inputs: Sequence[Input],
    samples: Sequence[int],
    facts: RoundFacts | None,
    specs: Mapping[str, TensorSpec],
    order: Sequence[str],
    base: TensorFile,
    threads: int | None = None,
) -> Iterator[Block]:
    """The new model's tensors in this order, block by block. Raises `ValueError`, `KeyError`, `MalformedFile`."""
    start = Input.open(base, base)
    folding = strategy.prepare(geometry(inputs, samples, facts, specs, base, threads))

    def folded(window: Window) -> Block:
        return folding.fold([each.block(window) for each in inputs], start.block(window))

    return stream([*inputs, start], specs, order, folded, threads)


class Remembering:
    """A round of a strategy that remembers: the model, and what is remembered after it, each in a pass of its own.

    `before` is the file of what was remembered after the last round; None stands for zeros. With `averaged` batch
    normalisation's statistics are the mean of the updates' by samples, whatever the strategy steps by, and nothing is
    remembered of them: they are measured and not learned, and a step beyond what hospitals measured takes a variance
    below zero. Raises `ValueError`, `MalformedFile` where it does not fit.
    """

    def __init__(
        self,
        strategy: Stateful,
        inputs: Sequence[Input],
        samples: Sequence[int],
        facts: RoundFacts | None,
        number: int,
        base: TensorFile,
        before: TensorFile | None,
        *,
        averaged: bool,
    ) -> None:
        self._base = Input.open(base, base)
        self._inputs, self._samples = inputs, samples
        self._averaged = averaged
        self._strategy = strategy
        self.specs = inputs[0].reader.tensors
        self.floating = {name: each for name, each in self.specs.items() if np.issubdtype(each.dtype, np.floating)}
        self._before = None if before is None else Input.open(before, before)
        if before is not None:
            self._check(before)
        self._stepping = strategy.remember(geometry(inputs, samples, facts, self.specs, base), number)

    def models(self, order: Sequence[str], threads: int | None = None) -> Iterator[Block]:
        """The new model's tensors in this order, block by block."""
        return stream(self._read, self.specs, order, lambda window: self._step(window)[0], threads)

    def kept(self, at: int, threads: int | None = None) -> Iterator[Block]:
        """One of the things that are remembered, of all floating tensors by name, block by block."""
        return stream(self._read, self.specs, sorted(self.floating), lambda window: self._step(window)[1][at], threads)

    @property
    def _read(self) -> list[Input]:
        return [*self._inputs, self._base]

    def _check(self, before: TensorFile) -> None:
        for name, spec in self.floating.items():
            for each in (state_name(what, name) for what in self._strategy.state):
                found = before.header.tensors.get(each)
                if found is None or (found.shape, found.dtype) != (spec.shape, np.dtype(np.float32)):
                    raise MalformedFile(f"what was remembered does not fit the model: {each}")

    def _step(self, window: Window) -> tuple[Block, list[Block]]:
        base = self._base.block(window)
        names = self._strategy.state if np.issubdtype(base.dtype, np.floating) else ()
        state = [self._remembered(what, window) for what in names]
        updates = [each.block(window) for each in self._inputs]
        made, kept = self._stepping.step(updates, base, state)
        if self._averaged and names and (places := _statistics(window)):
            made, kept = made.copy(), [each.copy() for each in kept]
            for place in places:
                made[place] = exact.weighted_mean([each[place] for each in updates], self._samples)
                for each in kept:
                    each[place] = 0
        return made, kept

    def _remembered(self, what: str, window: Window) -> Block:
        if self._before is None:
            return np.zeros(sum(each.stop - each.start for each in window), np.float32)
        return self._before.block(tuple(replace(each, name=state_name(what, each.name)) for each in window))


def _statistics(window: Window) -> list[slice]:
    """Where in a window statistics of batch normalisation lie."""
    found, at = [], 0
    for each in window:
        if each.name.endswith(STATISTICS):
            found.append(slice(at, at + each.stop - each.start))
        at += each.stop - each.start
    return found

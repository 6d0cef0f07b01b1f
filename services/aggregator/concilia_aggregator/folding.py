"""Folding updates into a global model, block by block over memory maps.

The peak is a few blocks whatever the number of hospitals or the size of the model: pages that were read are given back.
Same updates, same strategy: same bytes, and so the same digest; the verifier calls this very function.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rfc8785
from concilia_kit.encodings import staleness_of
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.tensorfile import TensorFile, TensorSpec, TensorWriter
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.masking import Unmasking
from concilia_kit.wire.metadata import NOISE, STATE, state_name
from concilia_kit.wire.strategy import Strategy as StrategySpec
from concilia_kit.wire.training import ArchitectureName, architecture_of

from concilia_aggregator import noising, strategies, unmasking
from concilia_aggregator.exact import is_summed
from concilia_aggregator.facts import RoundFacts
from concilia_aggregator.partials import Partial
from concilia_aggregator.strategies import Additive, Blockwise, Noised, Stateful, Strategy, fedbuff
from concilia_aggregator.strategies.base import Block, fold_integers
from concilia_aggregator.whole import Remembering, weighed
from concilia_aggregator.windows import GROUP, Input, Window, stream

ARCHITECTURE = "concilia.architecture"
ARITHMETIC = "concilia.arithmetic"
FACTS = "concilia.facts"
MASKING = "concilia.masking"
ROUND = "concilia.round"
STRATEGY = "concilia.strategy"

ORDERED = "ordered"
"""Float64 sums in the order of contributions: how models were made whose file names no arithmetic."""
EXACT = "exact-1"
"""Every element is the exact result, rounded once (`exact`)."""
AVERAGED = "exact-2"
"""The same, and strategies that remember take no steps with batch normalisation's statistics, which are averaged."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a global model was made; written into its file, so that the file alone says how to make it again."""

    architecture: ArchitectureName
    round: int
    strategy: StrategySpec
    arithmetic: str = EXACT
    facts: RoundFacts | None = None
    state: str | None = None
    """Digest of the artifact with what the strategy remembers after this round."""
    adapter: Adapter | None = None
    """What the model is an adapter of, and over which trunk: the base's, whose file says so too."""
    masking: Unmasking | None = None
    """Where updates were masked, how they become sums. There are no `facts` then: strategies go by the means of groups,
    of which nobody said anything."""
    noise: str | None = None
    """Digest of the artifact with the key of the noise that is on the model, where there is any (`noising`)."""

    def metadata(self) -> dict[str, str]:
        """The recipe as a safetensors file's metadata."""
        return {
            ARCHITECTURE: str(self.architecture),
            **({} if self.arithmetic == ORDERED else {ARITHMETIC: self.arithmetic}),
            ROUND: str(self.round),
            STRATEGY: rfc8785.dumps(self.strategy.model_dump(mode="json", exclude_none=True)).decode(),
            **({} if self.facts is None else {FACTS: self.facts.text()}),
            **({} if self.state is None else {STATE: self.state}),
            **({} if self.noise is None else {NOISE: self.noise}),
            **({} if self.adapter is None else self.adapter.metadata()),
            **({} if self.masking is None else {MASKING: rfc8785.dumps(self.masking.model_dump(mode="json")).decode()}),
        }

    @classmethod
    def of(cls, model: TensorFile) -> Recipe:
        """The recipe in a global model's file. Raises `ValueError` where it carries none, an unknown arithmetic, or
        half an adapter's."""
        metadata = model.header.metadata
        try:
            recipe = cls(
                architecture_of(metadata[ARCHITECTURE]),
                int(metadata[ROUND]),
                StrategySpec.model_validate_json(metadata[STRATEGY]),
                metadata.get(ARITHMETIC, ORDERED),
                RoundFacts.model_validate_json(metadata[FACTS]) if FACTS in metadata else None,
                metadata.get(STATE),
                Adapter.of(metadata),
                Unmasking.model_validate_json(metadata[MASKING]) if MASKING in metadata else None,
                metadata.get(NOISE),
            )
        except KeyError as error:
            raise ValueError(f"{model.path.name} carries no recipe") from error
        if recipe.arithmetic not in {ORDERED, EXACT, AVERAGED}:
            raise ValueError(f"{model.path.name} was made by an arithmetic that this version does not know")
        return recipe

    def state_before(self, base: TensorFile) -> str | None:
        """Digest of what the strategy remembered when it made the base: one of the same name did, in this job or in the
        one whose model this one began with. None where it begins with zeros."""
        if STATE not in base.header.metadata or not isinstance(self.made(), Stateful):
            return None
        before = Recipe.of(base)
        return before.state if before.strategy.name == self.strategy.name else None

    def made(self) -> Strategy:
        """The strategy. Raises `StrategyUnknown`."""
        setting = None if self.facts is None else self.facts.setting(self.round)
        return strategies.make(self.strategy, setting, ordered=self.arithmetic == ORDERED)


def fold(
    updates: Sequence[TensorFile],
    samples: Sequence[int],
    recipe: Recipe,
    target: Path,
    base: TensorFile | None = None,
    *,
    partials: Sequence[Partial] = (),
    before: TensorFile | None = None,
    noise: bytes | None = None,
    threads: int | None = None,
    keys: Keyring = NO_KEYS,
) -> str:
    """Fold updates, given in the order of contributions, into `target`; returns the SHA-256 of its content, which is
    sealed where `keys` have a current one. Whoever keeps the file sees to it that it lasts: it can be made again.

    `base` is the model that they update, which encoded ones are read with, and which is averaged with late ones. Names,
    shapes and dtypes must agree (see `screening`). `partials` hold what other updates come to, for strategies that are
    `Additive`; `before` is what a `Stateful` one remembered after the last round; `noise` the key of what a `Noised`
    one adds. `threads`: how many compute, one a processor by default. Neither parts nor threads change a bit.

    Of a recipe with `masking` the updates are masked ones, those of its survivors in their order, and `facts` are None.
    What is folded are the means of its groups, each with its group's samples: of a `Blockwise` strategy as they are
    unmasked, of others in files beside `target` that are gone afterwards (sealed as it is).

    Raises `ValueError` for no updates, for an encoded or late one without its base, for a strategy that goes by more
    than its updates without it, for one that adds noise without a key, and for values that are not finite,
    `StrategyUnknown`, `KeyError`, `MalformedFile`, `OSError`.
    """
    if not updates and not partials:
        raise ValueError("nothing to fold")
    with _inputs(updates, samples, recipe, target, base, keys, threads) as (inputs, weights):
        if recipe.strategy.asynchronous:
            if partials:
                raise ValueError("sums by samples say nothing of updates that are weighed by their staleness")
            inputs, weights = _buffered(inputs, base)
        specs = inputs[0].reader.tensors if inputs else partials[0].tensors
        with TensorWriter(target, specs, recipe.metadata(), lasting=False, keys=keys) as writer:
            made = blocks(
                inputs,
                weights,
                recipe,
                specs,
                writer.order,
                partials,
                threads,
                base=base,
                before=before,
                noise=noise,
            )
            for block in made:
                writer.append(block)  # hashed and written while the next ones are computed
    if base is not None:
        base.forget()
    return writer.digest


@contextlib.contextmanager
def _inputs(
    updates: Sequence[TensorFile],
    samples: Sequence[int],
    recipe: Recipe,
    target: Path,
    base: TensorFile | None,
    keys: Keyring,
    threads: int | None,
) -> Iterator[tuple[list[Input], Sequence[int]]]:
    """What is folded, and by how many samples: updates as they are, or the means of masked ones."""
    if recipe.masking is None:
        yield [Input.open(update, base) for update in updates], samples
        return
    if base is None or recipe.facts is not None or recipe.strategy.asynchronous:
        raise ValueError("masked updates are folded with their base, by nothing but their sums")
    if isinstance(recipe.made(), Blockwise):
        yield unmasking.readers(updates, samples, recipe.masking, base)  # each block is read once
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
        files, behind = unmasking.means(updates, samples, recipe.masking, base, Path(folder), keys, threads)
        yield [Input.open(file, base) for file in files], behind


def _buffered(inputs: list[Input], base: TensorFile | None) -> tuple[list[Input], list[int]]:
    """What is averaged, and by which weights: each update by how late its file says that it is, and where any is, the
    base as one more (`FedBuff`)."""
    weights = [fedbuff.weight(staleness_of(each.file)) for each in inputs]
    if not (rest := fedbuff.base_weight(weights)):
        return inputs, weights
    if base is None:
        raise ValueError("late updates can be folded with their base only")
    return [*inputs, Input.open(base, base)], [*weights, rest]


def remember(
    updates: Sequence[TensorFile],
    samples: Sequence[int],
    recipe: Recipe,
    target: Path,
    base: TensorFile,
    before: TensorFile | None = None,
    *,
    threads: int | None = None,
    keys: Keyring = NO_KEYS,
) -> str:
    """Write what a `Stateful` strategy remembers after a round into `target`; the SHA-256 of its content. As `fold`."""
    strategy = recipe.made()
    if not isinstance(strategy, Stateful):
        raise ValueError(f"{recipe.strategy.name} remembers nothing")
    with _inputs(updates, samples, recipe, target, base, keys, threads) as (inputs, weights):
        round_ = _remembering(strategy, inputs, weights, recipe, base, before)
        specs = {
            state_name(what, name): TensorSpec(np.dtype(np.float32), spec.shape)
            for name, spec in round_.floating.items()
            for what in strategy.state
        }
        with TensorWriter(target, specs, {ROUND: str(recipe.round)}, lasting=False, keys=keys) as writer:
            # One thing after another, in the order of the file; each goes over the updates once more.
            for what in sorted(strategy.state, key=lambda what: state_name(what, "")):
                for block in round_.kept(strategy.state.index(what), threads):
                    writer.append(block)
    return writer.digest


def blocks(
    inputs: Sequence[Input],
    samples: Sequence[int],
    recipe: Recipe,
    specs: Mapping[str, TensorSpec],
    order: Sequence[str],
    partials: Sequence[Partial] = (),
    threads: int | None = None,
    *,
    base: TensorFile | None = None,
    before: TensorFile | None = None,
    noise: bytes | None = None,
) -> Iterator[Block]:
    """The new model's tensors in this order, block by block; else as `fold`."""
    strategy = recipe.made()
    if isinstance(strategy, Blockwise):
        return _blockwise(strategy, inputs, samples, specs, order, partials, threads)
    if partials:
        raise ValueError("only of sums are there parts")
    if base is None or not inputs:
        raise ValueError(f"{recipe.strategy.name} goes by what updates change of their base")
    if isinstance(strategy, Stateful):
        return _remembering(strategy, inputs, samples, recipe, base, before).models(order, threads)
    if isinstance(strategy, Noised):
        if noise is None:
            raise ValueError(f"{recipe.strategy.name} needs the key of its noise")
        return noising.noised(strategy, inputs, samples, specs, order, base, noise, threads)
    return weighed(strategy, inputs, samples, recipe.facts, specs, order, base, threads)


def _remembering(
    strategy: Stateful,
    inputs: Sequence[Input],
    samples: Sequence[int],
    recipe: Recipe,
    base: TensorFile,
    before: TensorFile | None,
) -> Remembering:
    averaged = recipe.arithmetic == AVERAGED
    return Remembering(strategy, inputs, samples, recipe.facts, recipe.round, base, before, averaged=averaged)


def _blockwise(
    strategy: Blockwise,
    inputs: Sequence[Input],
    samples: Sequence[int],
    specs: Mapping[str, TensorSpec],
    order: Sequence[str],
    partials: Sequence[Partial],
    threads: int | None,
) -> Iterator[Block]:
    if partials and not isinstance(strategy, Additive):
        raise ValueError("only of sums are there parts")

    def folded(window: Window) -> Block:
        found = [each.block(window) for each in inputs[:GROUP]]
        dtype = specs[window[0].name].dtype
        if not np.issubdtype(dtype, np.floating):
            found += [each.block(window) for each in inputs[GROUP:]]
            return fold_integers([*found, *(each.block(window) for each in partials)])
        if not partials and not (len(inputs) > GROUP and isinstance(strategy, Additive) and is_summed(dtype, samples)):
            return strategy.fold([*found, *(each.block(window) for each in inputs[GROUP:])], samples)
        assert isinstance(strategy, Additive), "looked at above"
        sums = [each.sum(window) for each in partials]
        for start in range(0, len(inputs), GROUP):
            group = found if start == 0 else [each.block(window) for each in inputs[start : start + GROUP]]
            sums.append(strategy.sum(group, samples[start : start + GROUP]))
        return strategy.total(sums, sum(samples) + sum(each.samples for each in partials), dtype)

    together = min(len(inputs), GROUP) + len(partials) if isinstance(strategy, Additive) else len(inputs)
    return stream([*inputs, *(each.input for each in partials)], specs, order, folded, threads, together)

"""What is checked of a model with noise beside what is checked of any: that it has the noise which its hospitals
counted on when they signed what their updates cost, and a key that no other round had.

Folding again shows that the noise is the key's. That the key was drawn at random nobody can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from concilia_kit.wire.chain import LedgerUpdate

from concilia_aggregator.folding import Recipe
from concilia_aggregator.strategies import Noised

_ALIKE = 1e-9
"""By what part two products of the same numbers may differ."""


def faults(
    recipe: Recipe, number: int, told: Mapping[str, LedgerUpdate | None], used: dict[str, int]
) -> Iterator[tuple[str | None, str]]:
    """Whose fault it is, where it is one hospital's, and what, of a round's model by its recipe. `told`: each
    contribution's signed update, as far as it is known; `used`: which round had a key, to which this one's is added."""
    central = recipe.strategy.central
    for name, update in told.items():
        spent = None if update is None or update.metrics is None else update.metrics.privacy
        if spent is None or not spent.central:
            continue
        if central is None or not isinstance(recipe.made(), Noised):
            yield name, "it was told that the aggregator adds noise, and the model was made without"
        elif not math.isclose(spent.noise * spent.clip, central.noise * central.radius, rel_tol=_ALIKE):
            yield name, "it was told of other noise than the model was made with"
        elif not math.isclose(spent.clip, 2 * central.radius, rel_tol=_ALIKE):
            yield name, "it was told that updates are cut to another length than they were"
    if recipe.noise is not None and (first := used.setdefault(recipe.noise, number)) != number:
        yield None, f"the key of its noise is round {first}'s too: the two models tell what the noise hides"

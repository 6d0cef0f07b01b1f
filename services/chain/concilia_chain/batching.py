"""Which waiting orders go into one transaction. Pure.

Updates of one round share a transaction: it costs 21,000 gas before the first of them, and the contract's storage is
written once a batch. Anything else goes alone, in the order in which it came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from concilia_kit.signing import Update

from concilia_chain.orders import Order

_WINDOWS = 20
"""How many windows the first of a batch waits at most."""


def batches(orders: Iterable[Order], most: int) -> list[list[Order]]:
    """Orders as they came, updates of one round (and base) together, at most `most` in a batch.

    A batch stands where its group's first update does.
    """
    groups: dict[object, list[Order]] = {}
    for order in orders:
        update = None if order.submission is None else order.submission.update
        key = order.id if update is None else (*_round(update), update.base)
        groups.setdefault(key, []).append(order)
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]


def round_of(order: Order) -> tuple[str, int] | None:
    """The round that an update is for; None for anything else."""
    return None if order.submission is None else _round(order.submission.update)


def complete(orders: Iterable[Order], missing: Callable[[str, int], int]) -> set[tuple[str, int]]:
    """The rounds of which so many updates wait that no other is to come; `missing` says how many there may be."""
    waiting = Counter(place for order in orders if (place := round_of(order)) is not None)
    return {place for place, count in waiting.items() if count >= missing(*place)}


def due_in(batch: Sequence[Order], most: int, window: float, now: float) -> float:
    """Seconds until a batch goes: none for one that is no update, or full.

    Else a window after the last one that came, and while they keep coming some windows after the first: `window` is
    what the next transaction would cost in seconds, or more.
    """
    if batch[0].submission is None or len(batch) >= most:
        return 0.0
    return max(0.0, min(batch[-1].received_at + window, batch[0].received_at + _WINDOWS * window) - now)


def _round(update: Update) -> tuple[str, int]:
    return update.job, update.round

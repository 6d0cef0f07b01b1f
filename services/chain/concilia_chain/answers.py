"""Who waits for which order, and what they are told: threads that ask meet the gateway's thread here."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future
from typing import NamedTuple

from concilia_chain.events import Event
from concilia_chain.orders import Standing


class Outcome(NamedTuple):
    """An order's end: how it stands on the chain, or the event that says that its effect was there before."""

    standing: Standing | None
    effect: Event | None = None


class Answers:
    """Futures by order. Nobody waits for ever: an order ends, or those who wait are told what is in its way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, dict[bool, Future[Outcome]]] = defaultdict(dict)

    def of(self, order: int, *, final: bool) -> Future[Outcome]:
        """The answer to come: once the order's transaction is in a block, or once it is final."""
        with self._lock:
            return self._waiting[order].setdefault(final, Future())

    def settle(self, order: int, outcome: Outcome, *, final: bool) -> None:
        """An order is on the chain; whoever waits for it to be final is told only if it is."""
        with self._lock:
            waiting = self._waiting.get(order, {})
            ready = [waiting.pop(each) for each in (False, True) if each in waiting and (final or not each)]
            if not waiting:
                self._waiting.pop(order, None)
        for future in ready:
            future.set_result(outcome)

    def fail(self, order: int, error: Exception) -> int:
        """An order does not go through, or not now; how many were told."""
        with self._lock:
            ready = list(self._waiting.pop(order, {}).values())
        for future in ready:
            future.set_exception(error)
        return len(ready)

    def waiting(self) -> list[int]:
        """Orders that somebody waits for."""
        with self._lock:
            return list(self._waiting)

    def fail_all(self, orders: Iterable[int], error: Exception) -> None:
        """What is in the way of some orders is in the way of them all."""
        for order in orders:
            self.fail(order, error)

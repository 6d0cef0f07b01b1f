"""How many updates a round may still get, so that nobody waits for one more after the last. Never more than a hint.

The coordinator says whom it asked when it opens a round; after a start of this service, that is forgotten, and whoever
is a hospital may send.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

_KEPT = 1000


class Expectations:
    """Of the rounds that were opened last. `recorded` counts a round's updates on the chain, `hospitals` all there are.

    For many threads.
    """

    def __init__(self, recorded: Callable[[str, int], int], hospitals: Callable[[], int]) -> None:
        self._recorded = recorded
        self._hospitals = hospitals
        self._lock = threading.Lock()
        self._expected: OrderedDict[tuple[str, int], int] = OrderedDict()

    def expect(self, job: str, number: int, count: int) -> None:
        """So many updates may come in a round."""
        with self._lock:
            self._expected[job, number] = count
            while len(self._expected) > _KEPT:
                self._expected.popitem(last=False)

    def missing(self, job: str, number: int) -> int:
        """How many updates may come beside those that are on the chain."""
        with self._lock:
            expected = self._expected.get((job, number))
        return (self._hospitals() if expected is None else expected) - self._recorded(job, number)

"""Group commit: what several callers want written at the same time is written in one transaction.

A transaction that is durable costs a flush of the disk, however much is in it. Whoever comes while one is written goes
into the next, so that nobody waits for company and a busy service flushes once for many. Nobody is told before what it
brought is committed. Source: Gawlick and Kinkade, "Varieties of concurrency control in IMS/VS Fast Path" (1985).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_MOST = 256
"""Items in a transaction: enough for its flush to cost little of each, few enough to be short."""


class Together(Generic[Item, Answer]):
    """Items to be written by `write`, for many threads; its own one starts with the first item.

    `write` takes items in the order in which they came, commits them, and gives an answer for each: an exception is
    raised to that item's caller alone. Where `write` itself raises for several, each is tried by itself.
    """

    def __init__(
        self, write: Callable[[Sequence[Item]], Sequence[Answer | Exception]], name: str, most: int = _MOST
    ) -> None:
        self._write = write
        self._name = name
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Item, Future[Answer]]] = deque()
        self._thread: threading.Thread | None = None

    def put(self, item: Item) -> Future[Answer]:
        """Have an item written; its answer comes once it is committed."""
        answer: Future[Answer] = Future()
        with self._changed:
            self._waiting.append((item, answer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return answer

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            # Whose caller went away meanwhile is left out; from here on nobody can.
            self._carry_out([each for each in taken if each[1].set_running_or_notify_cancel()])

    def _carry_out(self, taken: Sequence[tuple[Item, Future[Answer]]]) -> None:
        if not taken:
            return
        try:
            answers = self._write([item for item, _ in taken])
        except Exception as error:  # whatever it is, it is its caller's
            if len(taken) == 1:
                taken[0][1].set_exception(error)
            else:
                for each in taken:
                    self._carry_out([each])
            return
        for (_, future), answer in zip(taken, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

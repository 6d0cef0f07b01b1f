"""Group commit: everybody's answer is their own, nothing is written twice or left, and one that fails fails alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from concilia_kit.together import Together
from hypothesis import given
from hypothesis import strategies as st


class Written:
    """What was written, transaction by transaction; `spoiled` items make theirs fail."""

    def __init__(self, spoiled: frozenset[int] = frozenset()) -> None:
        self.transactions: list[list[int]] = []
        self.hold = threading.Event()
        self.hold.set()
        self._spoiled = spoiled

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        assert self.hold.wait(10)
        if self._spoiled & set(items):
            raise OSError("the disk is full")
        self.transactions.append(list(items))
        return [LookupError(item) if item < 0 else item * 2 for item in items]


@given(st.lists(st.integers(-5, 20), max_size=40), st.frozensets(st.integers(0, 20), max_size=4), st.integers(1, 7))
def test_each_has_its_own_answer_and_is_written_once(items: list[int], spoiled: frozenset[int], most: int) -> None:
    written = Written(spoiled)
    together = Together(written, "test", most)
    answers = [together.put(item) for item in items]
    for item, answer in zip(items, answers, strict=True):
        if item in spoiled:
            with pytest.raises(OSError, match="full"):
                answer.result(10)
        elif item < 0:
            with pytest.raises(LookupError):
                answer.result(10)
        else:
            assert answer.result(10) == item * 2
    assert [item for each in written.transactions for item in each] == [item for item in items if item not in spoiled]
    assert all(len(each) <= most for each in written.transactions)


def test_who_comes_while_something_is_written_goes_into_the_next() -> None:
    written = Written()
    together = Together(written, "test")
    written.hold.clear()
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(lambda: together.put(0).result(10))
        while together._waiting or together._thread is None:
            pass
        others = [pool.submit(lambda item=item: together.put(item).result(10)) for item in range(1, 20)]  # type: ignore[misc]
        while len(together._waiting) < 19:
            pass
        written.hold.set()
        assert first.result(10) == 0
        assert [each.result(10) for each in others] == [item * 2 for item in range(1, 20)]
    assert [len(each) for each in written.transactions] == [1, 19]


def test_whose_caller_went_away_is_left_out() -> None:
    written = Written()
    together = Together(written, "test")
    written.hold.clear()
    first = together.put(1)
    while together._waiting:
        pass
    gone, kept = together.put(2), together.put(3)
    assert gone.cancel()
    written.hold.set()
    assert (first.result(10), kept.result(10)) == (2, 6)
    assert written.transactions == [[1], [3]]

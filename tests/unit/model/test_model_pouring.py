"""Pouring: all of it, in order, in bounded memory, and what fails is told once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
from concilia_model.incoming import Chunk
from concilia_model.pouring import BATCH, LARGE_BATCH, Pours
from hypothesis import given
from hypothesis import strategies as st

PIECE = 2**16


async def of(chunks: list[bytes], pauses: frozenset[int] = frozenset()) -> AsyncIterator[bytes]:
    for at, chunk in enumerate(chunks):
        if at in pauses:
            await asyncio.sleep(0.002)
        yield chunk


@given(
    sizes=st.lists(st.integers(0, 3 * PIECE), max_size=24),
    pauses=st.frozensets(st.integers(0, 24), max_size=4),
    slow=st.booleans(),
)
def test_all_of_it_is_written_in_order(sizes: list[int], pauses: frozenset[int], slow: bool) -> None:
    chunks = [bytes([at]) * size for at, size in enumerate(sizes)]
    found = bytearray()

    def write(some: list[Chunk]) -> None:
        if slow:
            time.sleep(0.001)
        for chunk in some:
            found.extend(chunk)

    asyncio.run(Pours().pour(of(chunks, pauses), write))
    assert bytes(found) == b"".join(chunks)


@pytest.mark.parametrize(("files", "batch"), [(1, LARGE_BATCH), (4, LARGE_BATCH // 2), (32, BATCH)])
async def test_a_slow_writer_stops_the_reading_and_files_share_the_memory(files: int, batch: int) -> None:
    went, gate, pours = [0] * files, threading.Event(), Pours()

    async def chunks(at: int) -> AsyncIterator[bytes]:
        for _ in range(100):
            went[at] += PIECE
            yield bytes(PIECE)
            await asyncio.sleep(0)

    written = 0
    counting = threading.Lock()

    def write(some: list[Chunk]) -> None:
        nonlocal written
        gate.wait(10)
        with counting:
            written += sum(map(len, some))

    pouring = [asyncio.create_task(pours.pour(chunks(at), write)) for at in range(files)]
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert max(went) <= 2 * batch + PIECE
    gate.set()
    await asyncio.gather(*pouring)
    assert written == sum(went) == files * 100 * PIECE


@pytest.mark.parametrize("at", [0, 1, 5])
async def test_what_the_writer_raises_is_raised_once_and_nothing_is_written_after_it(at: int) -> None:
    calls = 0

    def write(_some: list[Chunk]) -> None:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        await Pours().pour(of([bytes(4 * PIECE)] * 40, frozenset(range(40))), write)
    assert calls == at + 1


async def test_what_came_before_a_break_is_written() -> None:
    found = bytearray()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(5):
            yield bytes([at]) * PIECE
        raise ConnectionResetError

    def write(some: list[Chunk]) -> None:
        time.sleep(0.01)
        for chunk in some:
            found.extend(chunk)

    with pytest.raises(ConnectionResetError):
        await Pours().pour(chunks(), write)
    assert len(found) == 5 * PIECE


async def test_what_came_before_a_cancellation_is_written() -> None:
    found = 0

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(PIECE)
        await asyncio.sleep(60)

    def write(some: list[Chunk]) -> None:
        nonlocal found
        found += sum(map(len, some))

    pouring = asyncio.create_task(Pours().pour(chunks(), write))
    await asyncio.sleep(0.05)
    pouring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pouring
    assert found == 3 * PIECE

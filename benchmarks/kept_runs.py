"""Runs that a benchmark makes in processes of its own and keeps one by one: what was interrupted goes on, and what is
there is not made again."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

R = TypeVar("R")
T = TypeVar("T")


def digest_of(told: Any) -> str:
    """Ten hexadecimal digits for what a run or a setting depends on, given as JSON's values."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written that is at `path` in the end, or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)


def make(work: Callable[[R], T], missing: Sequence[R], workers: int) -> Iterator[tuple[R, T, str]]:
    """Have processes make runs, as many at a time as there are `workers`: each with what `work` returned, in the order
    in which they end, and a text of how far it is. `work` must be a module's function, or a `partial` of one.

    Whoever stops asking, or is ended from outside, ends these processes, which would go on to the end of the list, and
    no others. Raises what `work` raised. To be asked from the main thread.
    """
    if not missing:
        return
    began, context = time.monotonic(), multiprocessing.get_context("spawn")
    with (
        _ending_as_an_exception(),
        ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool,
        _giving_up(pool),
    ):
        waiting = {pool.submit(work, run): run for run in missing}
        for done, future in enumerate(as_completed(waiting), start=1):
            left = (time.monotonic() - began) / done * (len(missing) - done)
            yield waiting[future], future.result(), f"{done}/{len(missing)}, about {left / 60:.0f} min left"


@contextmanager
def _ending_as_an_exception() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _giving_up(pool: ProcessPoolExecutor) -> Iterator[None]:
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise

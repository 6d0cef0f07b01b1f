"""What every fuzz target is held to: its declared errors and no others, a bound on CPU time and one on memory.

A target is a module of `targets`: `run(data)` takes whatever bytes there are, `DECLARED` are the errors that callers
answer, `GROWTH` the bytes that one input may add to the process's resident memory at its highest, `mutate` (where
random bytes do not get far) a mutator that knows the form. A fuzzer and the regression tests hold it to the same.
"""

from __future__ import annotations

import importlib
import os
import random
import resource
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

TARGETS = ("header", "tensors", "update", "message", "submission", "diagnosis_picture", "site_picture", "archive")
CORPUS = Path(__file__).parent / "corpus"
SECONDS = 5.0
"""CPU seconds for one input, under a fuzzer's instrumentation, which slows Python code tenfold."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Finding(AssertionError):
    """An input made a target do what it must not."""


def load(name: str) -> ModuleType:
    """A target's module. Imported when it is asked for, so that a fuzzer can instrument what it imports."""
    assert name in TARGETS
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def check(target: ModuleType, data: bytes) -> None:
    """Run a target on one input. Raises `Finding`."""
    resident, peak = _resident(), _peak()
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # services log warnings and go on
            target.run(data)
    except target.DECLARED:
        pass
    except Exception as error:
        raise Finding(f"{type(error).__name__}, which nobody answers: {error}") from error
    seconds = time.process_time() - began
    if seconds > SECONDS:
        raise Finding(f"{seconds:.1f} s for {len(data)} bytes")
    # The highest so far: it tells of this input alone where it rose.
    if (highest := _peak()) > peak and highest - resident > target.GROWTH:
        raise Finding(f"{(highest - resident) / 2**20:.0f} MiB of memory for {len(data)} bytes")


def corpus(name: str) -> Iterator[Path]:
    """A target's checked-in inputs."""
    yield from sorted((CORPUS / name).iterdir())


def mutated(target: ModuleType, data: bytes, seed: int) -> bytes:
    """A mutation that is the same wherever it is made, by the target's own mutator where it has one."""
    source = random.Random(seed)
    if hasattr(target, "mutate") and source.random() < 0.8:
        changed: bytes = target.mutate(data, source)
        return changed
    return random_bytes(data, source)


def random_bytes(data: bytes, source: random.Random) -> bytes:
    """A few bytes changed, left out, doubled or put in."""
    out = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8))):
        at = source.randrange(len(out) + 1)
        match source.randrange(4):
            case 0 if at < len(out):
                out[at] ^= 1 << source.randrange(8)
            case 1:
                del out[at : at + source.choice((1, 1, 4, 64))]
            case 2:
                out[at:at] = out[at : at + source.choice((1, 8, 64))]
            case _:
                out[at:at] = source.choice((b"\0", b"\xff" * 4, source.randbytes(3), b"\x7f"))
    return bytes(out)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""What processes cost: CPU seconds, memory at its highest, bytes over the loopback interface, all from /proc.

Memory is the sum over the processes at one moment, sampled: resident set size, in which what several processes share is
counted once each, and proportional set size, in which it is counted once in all. Source: proc(5).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_SAMPLE_SECONDS = 0.1
_SLOW_SECONDS = 1.0  # looking for new processes, and walking the page tables of gigabytes, are not free
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")

Find = Callable[[], Mapping[int, str]]
"""Process ids that are measured now, each with the part it plays."""


@dataclass(frozen=True)
class Cost:
    """What was used between two moments: seconds and bytes, by part where a dict.

    `resident` and `proportional` are the highest sums over all parts at one moment, `resident_of` each part's own
    highest.
    """

    seconds: float
    cpu: dict[str, float]
    resident: int
    resident_of: dict[str, int]
    proportional: int
    wire: int

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds over all parts."""
        return sum(self.cpu.values())


@dataclass
class _Sample:
    at: float
    wire: int
    cpu: dict[str, float] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    proportional: int | None = None


class Meter:
    """Samples the processes that `find` names from a thread of its own. A context manager."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._stopped = threading.Event()
        self._samples: list[_Sample] = []
        self._used: dict[int, tuple[str, float]] = {}
        self._found: Mapping[int, str] = {}
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> Cost:
        """What was used from one moment to another, as `time.time` tells them, by the samples just outside of them: a
        floor's empty rounds may be over between two. Raises `ValueError` without samples."""
        before = max((sample.at for sample in self._samples if sample.at <= begin), default=begin)
        after = min((sample.at for sample in self._samples if sample.at >= end), default=end)
        chosen = [sample for sample in self._samples if before <= sample.at <= after]
        if len(chosen) < 2:
            raise ValueError("too short to be measured")
        first, last = chosen[0], chosen[-1]
        parts = {part for sample in chosen for part in sample.resident}
        return Cost(
            seconds=last.at - first.at,
            cpu={part: last.cpu[part] - first.cpu.get(part, 0.0) for part in last.cpu},
            resident=max(sum(sample.resident.values()) for sample in chosen),
            resident_of={part: max(sample.resident.get(part, 0) for sample in chosen) for part in parts},
            proportional=max((sample.proportional or 0) for sample in chosen),
            wire=last.wire - first.wire,
        )

    def _run(self) -> None:
        """Sample at once, then again and again, and once more at the end."""
        last = float("-inf")
        while True:
            is_last = self._stopped.is_set()
            if is_slow := time.monotonic() - last >= _SLOW_SECONDS:
                last = time.monotonic()
                self._found = self._find()
            self._samples.append(self._sample(is_slow))
            if is_last:
                return
            self._stopped.wait(_SAMPLE_SECONDS)

    def _sample(self, is_slow: bool) -> _Sample:
        sample = _Sample(time.time(), loopback_bytes())
        for pid, part in self._found.items():
            if (seconds := cpu_seconds(pid)) is not None:
                self._used[pid] = part, seconds
            sample.resident[part] = sample.resident.get(part, 0) + resident(pid)
        for part, seconds in self._used.values():
            sample.cpu[part] = sample.cpu.get(part, 0.0) + seconds
        if is_slow:
            sample.proportional = sum(map(proportional, self._found))
        return sample


def families(roots: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Processes and all their descendants, each with its root's part."""
    found: dict[int, str] = {}
    for pid, part in roots:
        found[pid] = part
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(pid).children(recursive=True):
                found[child.pid] = part
    return found


def cpu_seconds(pid: int) -> float | None:
    """User and system seconds of a process so far, None where it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    return None


def resident(pid: int) -> int:
    """Resident set size of a process in bytes, 0 where it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def proportional(pid: int) -> int:
    """Proportional set size of a process in bytes, 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def loopback_bytes() -> int:
    """Bytes that were sent over the loopback interface since the machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    return 0

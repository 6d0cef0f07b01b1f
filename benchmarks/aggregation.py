"""One aggregation of ours in a process of its own: `python -m benchmarks.aggregation RULE FILE…` prints JSON.

`computed`: the new model's blocks, made and thrown away. `written`: `fold` as the worker calls it, hashed and in a
file. Memory is measured as it is of the peers, and beside it what of it is not mapped files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from concilia_aggregator import exact
from concilia_aggregator.folding import Recipe, blocks, fold
from concilia_aggregator.windows import Input
from concilia_kit.tensorfile import TensorFile, layout
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Architecture

from benchmarks.peers.aggregation import TRIM

_SAMPLE_SECONDS = 0.005


class _Watch(threading.Thread):
    """The most memory that was no mapped file, looked at all the time. Source: proc_pid_status(5)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, status("RssAnon"))

    def stop(self) -> None:
        """End."""
        self._done.set()
        self.join()


def status(name: str) -> int:
    """A line of this process's status that counts kilobytes, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def main() -> None:
    """Aggregate once each way."""
    rule, *names = sys.argv[1:]
    files = [TensorFile.open(Path(name)) for name in names]
    samples = [1000 + 37 * at for at in range(len(files))]
    trim = TRIM if rule == StrategyName.TRIMMED_MEAN else None
    recipe = Recipe(Architecture.RESNET50, 1, Strategy(name=StrategyName(rule), trim=trim))
    begun = status("VmRSS")
    specs = files[0].header.tensors
    exact.weighted_mean([np.ones(1, np.float32)], [1])  # loads what is compiled: a worker lives on
    begin = time.perf_counter()
    made = 0
    for block in blocks([Input.open(file, None) for file in files], samples, recipe, specs, layout(specs)[1]):
        made += block.nbytes
    computed = time.perf_counter() - begin
    assert made == sum(spec.nbytes for spec in specs.values())
    watch = _Watch()
    watch.start()
    with tempfile.TemporaryDirectory(dir=Path(names[0]).parent) as folder:
        begin = time.perf_counter()
        digest = fold(files, samples, recipe, Path(folder) / "model")
        written = time.perf_counter() - begin
    watch.stop()
    print(
        json.dumps(
            {
                "seconds": computed,
                "written": written,
                "peak": status("VmHWM"),
                "anonymous": watch.peak,
                "begun": begun,
                "digest": digest,
            }
        )
    )


if __name__ == "__main__":
    main()

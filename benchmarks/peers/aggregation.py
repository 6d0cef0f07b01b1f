"""Another system's own aggregation function over updates in memory, timed, in a process and an environment of its own.

`python aggregation.py flwr|byzfl-numpy|byzfl-torch fedavg|median|trimmed_mean FILE…` prints seconds and the highest
resident memory as JSON. The arrays are there before the clock starts, as they are after the system received them.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TRIM = 0.1


def arrays(path: Path) -> list[Any]:
    """A safetensors file's float32 tensors, in memory, by name."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        length = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + length])
        found = []
        for name in sorted(name for name, entry in header.items() if entry.get("dtype") == "F32"):
            begin, end = (8 + length + at for at in header[name]["data_offsets"])
            found.append(np.frombuffer(mapped[begin:end], np.float32).reshape(header[name]["shape"]))
        return found


def flwr(rule: str, updates: list[list[Any]]) -> Any:
    """Flower's functions over lists of layers."""
    from flwr.server.strategy import aggregate

    results = [(layers, 1000 + 37 * at) for at, layers in enumerate(updates)]
    if rule == "fedavg":
        return lambda: aggregate.aggregate(results)
    if rule == "median":
        return lambda: aggregate.aggregate_median(results)
    return lambda: aggregate.aggregate_trimmed_avg(results, TRIM)


def byzfl(rule: str, updates: list[list[Any]], kind: str) -> Any:
    """ByzFL's aggregators over one flat vector an update; it has no weights."""
    from byzfl import Average, Median, TrMean

    flat: Any = np.empty((len(updates), sum(layer.size for layer in updates[0])), np.float32)
    for row, update in zip(flat, updates, strict=True):
        np.concatenate([layer.reshape(-1) for layer in update], out=row)
        update.clear()
    if kind == "torch":
        import torch

        flat = torch.from_numpy(flat)
    made = {"fedavg": Average, "median": Median}.get(rule, lambda: TrMean(f=int(TRIM * len(updates))))()
    return lambda: made(flat)


def main() -> None:
    """Run one function once."""
    peer, rule, *files = sys.argv[1:]
    updates = [arrays(Path(file)) for file in files]
    name, _, kind = peer.partition("-")
    run = flwr(rule, updates) if name == "flwr" else byzfl(rule, updates, kind)
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"seconds": seconds, "peak": int(status["VmHWM"].split()[0]) * 1024}))


if __name__ == "__main__":
    main()

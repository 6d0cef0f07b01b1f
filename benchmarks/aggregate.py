"""What aggregating costs: FedAvg by the machine's read bandwidth, median and trimmed mean beside ByzFL's and Flower's.

`python -m benchmarks.aggregate --help` tells the options; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from concilia_kit.tensorfile import TensorSpec, TensorWriter

from benchmarks import results
from benchmarks.contenders.processes import PEERS, environment
from benchmarks.floor import Floor, measure, one_pass
from benchmarks.peers.payload import shapes

OURS = "concilia"
RIVALS = {"flwr": "flower", "byzfl-numpy": "byzfl", "byzfl-torch": "byzfl"}
"""Peers, each with its environment."""
RULES = ("fedavg", "median", "trimmed_mean")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write them; 1 where a process fails."""
    options = _options(arguments)
    updates = _updates(options.folder, max([*options.counts, *options.peer_counts]))
    samples: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    try:
        floor = measure(folder=options.folder)
        for at in range(options.repetitions):  # contenders take turns, so that what else runs touches all of them
            for who, rule, count in _cells(options):
                print(f"{count} updates, {rule}, {who}, run {at + 1}", file=sys.stderr, flush=True)
                samples.setdefault((who, rule, count), []).append(_run(who, rule, updates[:count]))
    except subprocess.CalledProcessError as error:
        print(f"{error}: {error.stderr[-2000:] if error.stderr else ''}", file=sys.stderr)
        return 1
    rows = [_row(*cell, found, floor) for cell, found in samples.items()]
    table = _table(rows, floor)
    document = {"floor": asdict(floor), "repetitions": options.repetitions, "rows": rows}
    print(table)
    print(f"\nall samples: {results.write('aggregate', document, table, options.output)}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregate", description="What aggregating costs.")
    parser.add_argument("--counts", type=int, nargs="*", default=[8, 32, 64], help="updates of a FedAvg")
    parser.add_argument("--peer-counts", type=int, nargs="*", default=[8, 32], help="updates of rules beside peers'")
    parser.add_argument("--peers", nargs="*", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--repetitions", type=int, default=3, help="fresh processes; the median counts")
    parser.add_argument("--folder", type=Path, default=Path("var/bench/updates"), help="for 102 MB an update")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if options.repetitions < 1 or min([*options.counts, *options.peer_counts], default=0) < 1:
        parser.error("counts and repetitions are 1 or more")
    return options


def _cells(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    for count in options.counts:
        yield OURS, "fedavg", count
    for count in options.peer_counts:
        for rule in RULES[1:]:
            yield OURS, rule, count
            for peer in options.peers:
                yield peer, rule, count
    for count in sorted({*options.counts} & {*options.peer_counts}):
        for peer in options.peers:
            yield peer, "fedavg", count


def _updates(folder: Path, count: int) -> list[Path]:
    """ResNet50's tensors with their buffers, near to one base, as hospitals' updates are; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
    specs = {name: TensorSpec(float32, shape) for name, shape in shapes().items()}
    for name in [name for name, spec in specs.items() if len(spec.shape) == 1 and name.endswith("weight")]:
        norm, spec = name.removesuffix("weight"), specs[name]
        specs |= {f"{norm}running_mean": spec, f"{norm}running_var": spec}
        specs[f"{norm}num_batches_tracked"] = TensorSpec(int64, ())
    paths = [folder / f"resnet50-{at:02}.safetensors" for at in range(count)]
    for at, path in enumerate(paths):
        if path.exists():
            continue
        base, step = np.random.default_rng(0), np.random.default_rng(1 + at)
        with TensorWriter(path, specs) as writer:
            for name in writer.order:
                spec = specs[name]
                if spec.dtype == int64:
                    writer.append(np.array([100 + at]))
                    continue
                size = math.prod(spec.shape)
                values = base.standard_normal(size, np.float32) * np.float32(0.05)
                writer.append(values + step.standard_normal(size, np.float32) * np.float32(0.002))
    return paths


def _run(who: str, rule: str, updates: Sequence[Path]) -> dict[str, Any]:
    for path in updates:  # into the page cache, whoever ran before
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass
    files = [str(path) for path in updates]
    if who == OURS:
        command = [sys.executable, "-m", "benchmarks.aggregation", rule, *files]
    else:
        command = [str(environment(RIVALS[who]) / "python"), str(PEERS / "aggregation.py"), who, rule, *files]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if who == OURS:
        found["one_pass"] = one_pass(updates)
    return found


def _row(who: str, rule: str, count: int, found: Sequence[dict[str, Any]], floor: Floor) -> dict[str, Any]:
    """Medians; bytes a second of updates that were aggregated."""
    seconds = statistics.median(each["seconds"] for each in found)
    written = statistics.median(each["written"] for each in found) if who == OURS else None
    rate = count * floor.nbytes / seconds
    return {
        "who": who,
        "rule": rule,
        "updates": count,
        "seconds": seconds,
        "written": written,
        "rate": rate,
        "share": statistics.median(each["one_pass"] / each["seconds"] for each in found) if who == OURS else None,
        "peak": statistics.median(each["peak"] for each in found),
        "anonymous": statistics.median(each["anonymous"] for each in found) if who == OURS else None,
        "samples": list(found),
    }


def _table(rows: Sequence[dict[str, Any]], floor: Floor) -> str:
    lines = [
        f"One pass over a warm file: {floor.bandwidth / 1e9:.1f} GB/s. SHA-256, a core: {floor.sha256 / 1e9:.2f} GB/s.",
        "",
        "| updates | rule | who | seconds | hashed and written | GB/s | share of one pass | peak MB | not mapped MB |"
        " times our seconds | times our peak |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = {(row["rule"], row["updates"]): row for row in rows if row["who"] == OURS}
    for row in sorted(rows, key=lambda row: (RULES.index(row["rule"]), row["updates"], row["who"] != OURS, row["who"])):
        same = ours.get((row["rule"], row["updates"]))
        ratios = (
            ("", "")
            if same is None or same is row
            else (f"{row['seconds'] / same['seconds']:.1f}", f"{row['peak'] / same['peak']:.1f}")
        )
        cells = (
            f"{row['updates']}",
            row["rule"].replace("_", " "),
            row["who"].replace("-", ", "),
            f"{row['seconds']:.2f}",
            "" if row["written"] is None else f"{row['written']:.2f}",
            f"{row['rate'] / 1e9:.1f}",
            "" if row["share"] is None else f"{row['share']:.0%}",
            f"{row['peak'] / 1e6:,.0f}",
            "" if row["anonymous"] is None else f"{row['anonymous'] / 1e6:,.0f}",
            *ratios,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

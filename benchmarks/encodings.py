"""What each encoding of updates costs in bytes, seconds and balanced accuracy, by federated training on real pictures.

`python -m benchmarks.encodings --data FOLDER --weights FILE`; a run that was made is kept under `--work` and not made
again, so that a measurement that was interrupted goes on. README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from concilia_client_node import dataset, drawn
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_kit import logs
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.training import Architecture

from benchmarks import federation, kept_runs, results
from benchmarks.federation import Setting

BASELINE = "none"
ENCODINGS = ("none", "float16", "int8", "topk:0.01")
GOAL_BYTES = 0.25
GOAL_POINTS = 0.5
DRAWN_IMAGES = 1200


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what runs are missing, then print and write the table."""
    options = _options(arguments)
    setting = Setting(
        architecture=options.architecture,
        weights=str(options.weights),
        image_size=options.image_size,
        images=options.images,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        rounds=options.rounds,
        judged=min(options.judged, options.rounds),
        held_out=options.held_out,
    )
    encodings = [BASELINE, *(text for text in options.encodings if text != BASELINE)]
    work = options.work / _name_of(setting, options.data)
    work.mkdir(parents=True, exist_ok=True)
    with _data(options.data) as data:
        source = dataset.read(data).source
        _make_runs(setting, data, work, options.seeds, encodings, options.workers)
    runs = [json.loads(_run_file(work, seed, text).read_text()) for seed in options.seeds for text in encodings]
    rows = _rows(runs, encodings)
    table = _table(setting, source, options.seeds, rows, runs)
    print("\n" + table)
    document = {
        "data": source,
        "arguments": setting.document() | {"weights": Path(options.weights).name, "seeds": options.seeds},
        "rows": rows,
        "runs": runs,
    }
    path = results.write("encodings", document, table, options.output)
    print(f"\nwritten to {path}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.encodings", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in HAM10000's layout; without it lesions are drawn")
    parser.add_argument("--weights", default="random", help="safetensors file of trained weights (default: random)")
    parser.add_argument("--architecture", type=Architecture, default=Architecture.MOBILENET_V2)
    parser.add_argument("--encodings", nargs="+", default=ENCODINGS, type=_encoding, metavar="ENCODING")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--judged", type=int, default=4, help="last rounds whose scores are averaged")
    parser.add_argument("--images", type=int, default=400, help="training images a site and round at most")
    parser.add_argument("--held-out", type=int, help="held-out images a site at most (default: all)")
    parser.add_argument("--image-size", type=int, default=64, help="side of the network's input, pixels")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("var/bench-encodings"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def _encoding(text: str) -> str:
    encoding = Encoding.parse(text)
    if encoding.zstd:
        raise argparse.ArgumentTypeError("every encoding is measured with zstd and without; name it without")
    return str(encoding)


def _name_of(setting: Setting, data: Path | None) -> str:
    """Runs of one setting, and of no other, are kept together."""
    return kept_runs.digest_of([setting.document(), str(data and data.resolve())])


def _run_file(work: Path, seed: int, encoding: str) -> Path:
    return work / f"{seed}-{encoding.replace(':', '-')}.json"


@contextmanager
def _data(named: Path | None) -> Iterator[Path]:
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory() as folder:
        drawn.write_drawn(Path(folder) / "lesions", DRAWN_IMAGES, 0)
        yield Path(folder) / "lesions"


@dataclass(frozen=True)
class _Worker:
    """What a process that makes runs keeps from one to the next: pictures are decoded once."""

    trainers: dict[str, TorchTrainer]
    scratch: Path


_workers: dict[Path, _Worker] = {}


def _worker(data: Path, scratch: Path) -> _Worker:
    if data not in _workers:
        logs.configure("bench-encodings", "text", "WARNING")
        torch.set_num_threads(1)
        _workers[data] = _Worker(federation.sites(data, scratch), scratch)
    return _workers[data]


def _make(setting: Setting, data: Path, scratch: Path, work: Path, run: tuple[int, str]) -> str:
    """Make the run of a seed and an encoding and keep it, whole or not at all; a line about it."""
    seed, text = run
    worker = _worker(data, scratch)

    def tell(words: str) -> None:
        print(f"  seed {seed} {text}: {words}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(dir=worker.scratch) as folder:
        made = federation.run(setting, worker.trainers, seed, Encoding.parse(text), Path(folder), tell)
    with kept_runs.whole(_run_file(work, seed, text)) as file:
        file.write(json.dumps(made).encode())
    return f"seed {seed} {text}: balanced accuracy {made['balanced_accuracy']:.3f}, {made['seconds']:.0f} s"


def _make_runs(
    setting: Setting, data: Path, work: Path, seeds: Sequence[int], encodings: Sequence[str], workers: int
) -> None:
    """Make what is missing, baselines first."""
    missing = [(seed, text) for text in encodings for seed in seeds if not _run_file(work, seed, text).exists()]
    print(f"{len(missing)} of {len(seeds) * len(encodings)} runs to make; kept under {work}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-encodings-") as folder:
        make = partial(_make, setting, data, Path(folder), work)
        for _, line, far in kept_runs.make(make, missing, workers):
            print(f"[{far}] {line}", flush=True)


def _rows(runs: Sequence[Mapping[str, Any]], encodings: Sequence[str]) -> list[dict[str, Any]]:
    """A row an encoding, with zstd and without; points are hundredths of balanced accuracy lost to the baseline."""
    baseline = {run["seed"]: run for run in runs if run["encoding"] == BASELINE}
    rows = []
    for text in encodings:
        own = [run for run in runs if run["encoding"] == text]
        lost = [100 * (baseline[run["seed"]]["balanced_accuracy"] - run["balanced_accuracy"]) for run in own]
        areas = [100 * (baseline[run["seed"]]["auc"] - run["auc"]) for run in own]
        for option in own[0]["costs"]:
            costs = [run["costs"][option] for run in own]
            size = statistics.mean(cost["bytes"] for cost in costs)
            rows.append(
                {
                    "encoding": option,
                    "bytes": round(size),
                    "ratio": size / own[0]["bytes_plain"],
                    "seconds_encode": statistics.median(cost["seconds_encode"] for cost in costs),
                    "seconds_decode": statistics.median(cost["seconds_decode"] for cost in costs),
                    "balanced_accuracy": statistics.mean(run["balanced_accuracy"] for run in own),
                    "points_lost": statistics.mean(lost),
                    "points_lost_by_seed": lost,
                    "points_lost_deviation": statistics.stdev(lost) if len(lost) > 1 else None,
                    "auc": statistics.mean(run["auc"] for run in own),
                    "auc_points_lost": statistics.mean(areas),
                }
            )
    return rows


def _table(
    setting: Setting,
    source: str,
    seeds: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
) -> str:
    baseline = [100 * run["balanced_accuracy"] for run in runs if run["encoding"] == BASELINE]
    spread = f" (standard deviation {statistics.stdev(baseline):.2f} points)" if len(baseline) > 1 else ""
    lines = [
        f"Data: {source}. {setting.architecture.value} from {Path(setting.weights).name} at {setting.image_size} "
        f"pixels, {setting.rounds} rounds of {setting.epochs} epoch(s) over at most {setting.images} images a site, "
        f"judged on {runs[0]['judged'][-1]['images']} held-out images, mean of the last {setting.judged} rounds; seeds "
        f"{', '.join(map(str, seeds))}.",
        "",
        "| encoding | bytes an update | of float32 | encode s | decode s | balanced accuracy | points lost, mean |"
        " by seed | AUC points lost |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        by_seed = " ".join(f"{lost:+.2f}" for lost in row["points_lost_by_seed"])
        lines.append(
            f"| {row['encoding']} | {row['bytes']:,} | {row['ratio']:.4f} | {row['seconds_encode']:.3f} "
            f"| {row['seconds_decode']:.3f} | {row['balanced_accuracy']:.4f} | {row['points_lost']:+.2f} | {by_seed} "
            f"| {row['auc_points_lost']:+.2f} |"
        )
    lines += ["", f"Balanced accuracy of `{BASELINE}` by seed: {', '.join(f'{x:.2f}' for x in baseline)}{spread}."]
    met = [r["encoding"] for r in rows if r["ratio"] <= GOAL_BYTES and r["points_lost"] <= GOAL_POINTS]
    lines.append(
        f"At most {GOAL_BYTES} of the bytes and {GOAL_POINTS} points lost on average: {', '.join(met) or 'none'}."
    )
    noisy = [r for r in rows if (r["points_lost_deviation"] or 0) > abs(r["points_lost"]) and r["encoding"] != BASELINE]
    if noisy:
        words = ", ".join(
            f"{r['encoding']} ±{r['points_lost_deviation']:.2f}" for r in noisy if "+" not in r["encoding"]
        )
        lines.append(
            f"The difference varies more from seed to seed (standard deviation) than it is large: {words}. There the "
            "mean says no more than that a loss, if there is one, is below what these seeds can show."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

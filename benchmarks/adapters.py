"""What a round moves where only an adapter is trained, in bytes of real files, and what that costs in accuracy.

`python -m benchmarks.adapters --data FOLDER --weights FILE`; a run that was made is kept under `--work` and not made
again, so that a measurement that was interrupted goes on. README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concilia_client_node import adapters as training_adapters
from concilia_client_node import dataset, networks
from concilia_kit import encodings, logs, tensorfile
from concilia_kit.tensorfile import TensorFile, TensorSpec
from concilia_kit.wire.adapter import Adapter, rank_of
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.jobs import Schedule
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Architecture, Balance, LocalTraining
from concilia_model import adapters
from torch import nn

from benchmarks import federated_sites, kept_runs, results, simulation
from benchmarks.federated_sites import Level, Sites
from benchmarks.simulation import Plan

FULL = "full"
KINDS = ("norms", "lora:4", "lora:8", "lora:16")
MEASURED = (Architecture.MOBILENET_V2, Architecture.RESNET50)
GOAL_BYTES, GOAL_POINTS = 0.05, 2.0
_ENCODINGS = ("none", "float16", "int8+zstd")
_STEP = 0.01  # of a tensor's own spread: what stands for a round's training where only its bytes count


@dataclass(frozen=True)
class Recipe:
    """What a run depends on, but for the code."""

    data: str
    arch: str
    weights: str
    size: int
    kind: str
    seed: int
    split: str
    rounds: int
    judged: int
    epochs: int
    batch: int
    rate: float
    balance: str
    strategy: str
    head_rounds: int
    images: int | None

    @property
    def name(self) -> str:
        """Of the run's file."""
        return f"{self.arch}-{self.kind.replace(':', '')}-{self.seed}-{kept_runs.digest_of(asdict(self))}.json"

    def plan(self) -> Plan:
        """As the simulator takes it."""
        local = LocalTraining(
            epochs=self.epochs,
            batch_size=self.batch,
            learning_rate=self.rate,
            image_size=self.size,
            balance=Balance(self.balance),
            max_images=self.images,
        )
        schedule = Schedule(whole_job=True, head_rounds=self.head_rounds)
        return Plan(Strategy(name=self.strategy), local, self.rounds, self.judged, self.seed, schedule=schedule)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure bytes, make what runs are missing, then print and write the tables; 1 where weights cannot be had."""
    options = _options(arguments)
    logs.configure("bench-adapters", "text", "WARNING")
    kinds = [FULL, *options.kinds]
    sizes = [row for arch in options.measured for row in measure(arch, kinds)]
    parts, runs = [_table_of_bytes(sizes)], []
    if options.seeds and options.rounds:
        try:
            weights = federated_sites.weights_of(options.arch, options.weights, options.work)
            level = Level(options.data, weights, True, options.size, "", options.work, options.images, options.arch)
            federated_sites.whole(level, 0)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        with federated_sites.folder_of(options.data) as data:
            wanted = _wanted(options, dataset.read(data).source, kinds)
            _make_all(wanted, replace(level, data=data), options.work, options.workers)
        runs = [json.loads((options.work / each.name).read_text()) for each in wanted]
        parts.append(_table_of_accuracy(level, wanted, runs, measure(options.arch, kinds)))
    table = "\n\n".join(parts)
    print("\n" + table)
    print(f"\nwritten to {results.write('adapters', {'bytes': sizes, 'runs': runs}, table, options.output)}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.adapters", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in HAM10000's layout; without it lesions are drawn")
    parser.add_argument("--weights", default="random", help="safetensors file of the trunk; 'imagenet'; 'random'")
    parser.add_argument("--arch", type=Architecture, default=Architecture.MOBILENET_V2, help="what accuracy is of")
    parser.add_argument("--measured", nargs="+", type=Architecture, default=MEASURED, help="what bytes are of")
    parser.add_argument("--kinds", nargs="+", type=_kind, default=KINDS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3], help="none: bytes alone")
    parser.add_argument("--split", default="collections")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--judged", type=int, default=3, help="last rounds whose scores are averaged")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--adapter-rate", type=float, help="where an adapter is trained (default: the same)")
    parser.add_argument("--balance", type=Balance, default=Balance.LOGIT)
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--head-rounds", type=int, default=0)
    parser.add_argument("--size", type=int, default=128, help="side of the input, pixels")
    parser.add_argument("--images", type=int, help="training pictures a site and round at most (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("var/bench-adapters"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def _kind(text: str) -> str:
    try:
        rank_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def specs_of(network: nn.Module) -> dict[str, TensorSpec]:
    """The tensors of a network in its own order."""
    made = networks.tensors(network)
    return {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in made.items()}


def adapted(network: nn.Module, kind: str, seed: int) -> nn.Module:
    """The network, in place, as one that trains such an adapter; all of it for `FULL`."""
    if kind != FULL:
        made, _ = adapters.fresh(networks.tensors(network), specs_of(network), kind, seed)
        state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in made.items()}
        training_adapters.put_over(network, state)
    return network


def measure(arch: Architecture, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Bytes of the files that a round moves, by what is trained: the model that each hospital downloads, its update in
    some encodings, and the trunk, which it downloads once."""
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            network = adapted(networks.build(arch), kind, 0)
            tensors = networks.tensors(network)
            said = {} if kind == FULL else Adapter("0" * 64, kind).metadata()
            tensorfile.write(Path(folder) / "base", tensors, said)
            base, rng = TensorFile.open(Path(folder) / "base"), np.random.default_rng(1)
            trained = {
                name: tensor
                if tensor.dtype != np.float32
                else tensor + rng.normal(scale=_STEP * (float(tensor.std()) or 0.1), size=tensor.shape).astype("f4")
                for name, tensor in tensors.items()
            }
            updates = {
                text: encodings.encode(Path(folder) / "update", Encoding.parse(text), trained, base).size
                for text in _ENCODINGS
            }
            rows.append({"arch": arch.value, "kind": kind, "model": base.path.stat().st_size, "updates": updates})
    whole = rows[0]
    return [
        row
        | {
            "trunk": 0 if row["kind"] == FULL else whole["model"],
            "share": row["updates"]["none"] / whole["updates"]["none"],
        }
        for row in rows
    ]


def _wanted(options: argparse.Namespace, source: str, kinds: Sequence[str]) -> list[Recipe]:
    rates = {kind: options.rate if kind == FULL else options.adapter_rate or options.rate for kind in kinds}
    return [
        Recipe(
            data=source,
            arch=options.arch.value,
            weights=Path(options.weights).name,
            size=options.size,
            kind=kind,
            seed=seed,
            split=options.split,
            rounds=options.rounds,
            judged=min(options.judged, options.rounds),
            epochs=options.epochs,
            batch=options.batch,
            rate=rates[kind],
            balance=options.balance.value,
            strategy=options.strategy,
            head_rounds=options.head_rounds,
            images=options.images,
        )
        for seed in options.seeds
        for kind in kinds
    ]


_sites: dict[Level, Sites] = {}


def _make(recipe: Recipe, level: Level, work: Path) -> str:
    """Make one run and keep it, whole or not at all; a line about it."""
    torch.set_num_threads(1)
    if level not in _sites:  # pictures are decoded once a process
        _sites[level] = Sites(level, dataset.read(level.data or Path()))
    began = time.monotonic()
    hospitals = _sites[level].hospitals(recipe.split, recipe.seed)
    made = simulation.run(recipe.plan(), hospitals, partial(_built, level, recipe.kind))
    if made.rejected:
        raise ValueError(f"screening left updates out: {made.rejected}")
    told = {"recipe": asdict(recipe), "seconds": time.monotonic() - began, **asdict(made.scores)}
    with kept_runs.whole(work / recipe.name) as file:
        file.write(json.dumps(told).encode())
    return f"seed {recipe.seed} {recipe.kind}: balanced accuracy {made.scores.balanced_accuracy:.3f}"


def _built(level: Level, kind: str, seed: int) -> nn.Module:
    return adapted(federated_sites.whole(level, seed), kind, seed)


def _make_all(wanted: Sequence[Recipe], level: Level, work: Path, workers: int) -> None:
    missing = [each for each in wanted if not (work / each.name).exists()]
    print(f"{len(missing)} of {len(wanted)} runs to make; kept under {work}: {level.name}", flush=True)
    for _, line, far in kept_runs.make(partial(_make, level=level, work=work), missing, workers):
        print(f"[{far}] {line}", flush=True)


def _table_of_bytes(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| network | trained | model, down | update, up | of the full one | "
        + " | ".join(f"up as {text}" for text in _ENCODINGS[1:])
        + " | trunk, once |",
        "|---|---|---:|---:|---:|" + "---:|" * len(_ENCODINGS),
    ]
    for row in rows:
        encoded = " | ".join(f"{row['updates'][text]:,}" for text in _ENCODINGS[1:])
        lines.append(
            f"| {row['arch']} | {row['kind']} | {row['model']:,} | {row['updates']['none']:,} | {row['share']:.4f} "
            f"| {encoded} | {row['trunk']:,} |"
        )
    return "\n".join(lines)


def _table_of_accuracy(
    level: Level, wanted: Sequence[Recipe], runs: Sequence[Mapping[str, Any]], sizes: Sequence[Mapping[str, Any]]
) -> str:
    first = wanted[0]
    seeds = sorted({each.seed for each in wanted})
    score = {(run["recipe"]["kind"], run["recipe"]["seed"]): 100 * run["balanced_accuracy"] for run in runs}
    lines = [
        f"Data: {first.data}, {first.split}. {first.arch}, {level.name}; {first.rounds} rounds of {first.epochs} "
        f"epoch(s), {first.strategy}, mean of the last {first.judged}; seeds {', '.join(map(str, seeds))}.",
        "",
        "| trained | rate | of the full update | balanced accuracy | points lost, mean | by seed |",
        "|---|---:|---:|---:|---:|---|",
    ]
    met = []
    for row in sizes:
        kind = row["kind"]
        lost = [score[FULL, seed] - score[kind, seed] for seed in seeds]
        rate = next(each.rate for each in wanted if each.kind == kind)
        lines.append(
            f"| {kind} | {rate:g} | {row['share']:.4f} | {statistics.mean(score[kind, seed] for seed in seeds):.2f} "
            f"| {statistics.mean(lost):+.2f} | {' '.join(f'{each:+.2f}' for each in lost)} |"
        )
        if row["share"] < GOAL_BYTES and statistics.mean(lost) <= GOAL_POINTS:
            met.append(kind)
    goal = f"Below {GOAL_BYTES:.0%} of the bytes and {GOAL_POINTS:g} points lost at most, on average"
    return "\n".join([*lines, "", f"{goal}: {', '.join(met) or 'none'}."])


if __name__ == "__main__":
    sys.exit(main())

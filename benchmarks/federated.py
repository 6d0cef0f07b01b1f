"""Strategies under site splits, attacks and seeds, by federations in memory: the nodes' training, the aggregator's
screening and strategies, no network.

`python -m benchmarks.federated --data FOLDER --weights FILE --strategies … --splits … --attacks … --shares … --seeds …`
appends a row a run to `--out`, and runs nothing that is there: what was interrupted goes on. README.md says what the
columns mean; `benchmarks.federated_report` makes tables, `benchmarks.federated_chart` pictures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from concilia_client_node import dataset
from concilia_kit import logs
from concilia_kit.wire.training import Balance, LocalTraining

from benchmarks import attacks, federated_runs, kept_runs, simulation
from benchmarks.federated_runs import BASELINES, Result, Run
from benchmarks.federated_sites import SPLITS, Level, Sites, folder_of
from benchmarks.simulation import Made, Plan

STRATEGIES = ("fedavg",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what runs are missing; 0."""
    options = _options(arguments)
    logs.configure("bench-federated", "text", "WARNING")
    with folder_of(options.data) as data:
        level = Level(data, options.weights, options.whole, options.size, options.head, options.cache, options.images)
        folder = dataset.read(data)
        if not level.whole:
            Sites(level, folder, options.workers)  # features once, before there are several that want them
        missing = _missing(options, level, folder.source)
        print(f"{len(missing)} runs on {folder.source} to make: {level.name}", file=sys.stderr, flush=True)
        for run, result, far in kept_runs.make(partial(make, level=level), missing, options.workers):
            federated_runs.append(options.out, run, result)
            print(
                f"  [{far}] {run.split} {run.strategy} {run.attack} {run.share:.0%} seed {run.seed}: balanced accuracy "
                f"{result.balanced_accuracy:.3f} ({result.seconds:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.federated", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in HAM10000's layout; without it lesions are drawn")
    parser.add_argument("--weights", type=Path, help="safetensors file of MobileNetV2's trunk (default: random)")
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=STRATEGIES,
        type=_strategy,
        metavar="STRATEGY",
        help="[nnm+|bucketing+]name[:parameter=value,…], pooled, alone; {f}: the attackers' share",
    )
    parser.add_argument("--splits", nargs="+", default=SPLITS, metavar="SPLIT", help="as the nodes' check has them")
    parser.add_argument(
        "--attacks", nargs="+", default=["none"], type=_attack, metavar="ATTACK", help="name[:strength]"
    )
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0], help="of hospitals that attack")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--judged", type=int, default=3, help="last rounds whose scores are averaged")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.03, help="hospitals' learning rate")
    parser.add_argument("--balance", type=Balance, default=Balance.LOSS)
    parser.add_argument("--unscreened", action="store_true", help="fold what the service's screening would leave out")
    parser.add_argument("--head", default="linear", help="on features: linear, batch:UNITS or layer:UNITS")
    parser.add_argument("--whole", action="store_true", help="train MobileNetV2 from end to end, at --size pixels")
    parser.add_argument("--size", type=int, default=224, help="side of the trunk's input, pixels")
    parser.add_argument("--images", type=int, help="training pictures a site and round at most (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--cache", type=Path, default=Path("var/federated/features"))
    parser.add_argument("--out", type=Path, default=Path("var/federated/runs.csv"))
    return parser.parse_args(arguments)


def _strategy(text: str) -> str:
    try:
        if text not in BASELINES:
            federated_runs.parse(federated_runs.assuming(text, 0.0))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _attack(text: str) -> str:
    try:
        if text != "none":
            attacks.make(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _missing(options: argparse.Namespace, level: Level, source: str) -> list[Run]:
    """Runs that are not in the table, those of one split and seed together."""
    runs = [
        Run(
            level.name, source, split, strategy, attack, share, not options.unscreened, seed, options.rounds,
            min(options.judged, options.rounds), options.epochs, options.batch, options.rate, options.balance.value,
        )
        for seed, split in product(options.seeds, options.splits)
        for strategy, attack, share in federated_runs.attacked(options.strategies, options.attacks, options.shares)
    ]  # fmt: skip
    there = federated_runs.known(federated_runs.read(options.out))
    return [run for run in runs if run.key not in there]


@dataclass
class _Worker:
    """What a process keeps from run to run."""

    sites: dict[Level, Sites]


_worker = _Worker({})


def make(run: Run, level: Level) -> Result:
    """Make one run, on one thread. Raises `ValueError`, `DatasetError`."""
    torch.set_num_threads(1)
    if level not in _worker.sites:
        logs.configure("bench-federated", "text", "WARNING")
        assert level.data is not None, "drawn by now, where none was named"
        _worker.sites[level] = Sites(level, dataset.read(level.data))
    sites = _worker.sites[level]
    hospitals = sites.hospitals(run.split, run.seed)
    local = LocalTraining(
        epochs=run.epochs,
        batch_size=run.batch,
        learning_rate=run.rate,
        balance=Balance(run.balance),
        augment=level.whole,
        max_images=level.images,
    )
    spec = federated_runs.parse("fedavg" if run.strategy in BASELINES else run.strategy)
    plan = Plan(spec, local, run.rounds, run.judged, run.seed, run.attack, run.share, run.screening)
    began = time.monotonic()
    made: Made
    if run.strategy == "pooled":
        made = simulation.pooled(plan, hospitals, sites.build)
    elif run.strategy in BASELINES:
        made = simulation.alone(plan, hospitals, sites.build, everywhere=run.strategy == "alone_everywhere")
    else:
        made = simulation.run(plan, hospitals, sites.build)
    scores = made.scores
    return Result(
        len(hospitals),
        scores.accuracy,
        scores.balanced_accuracy,
        scores.worst,
        scores.melanoma_recall,
        scores.backdoor,
        made.lost,
        ";".join(f"{reason}={count}" for reason, count in sorted(made.rejected.items())),
        ";".join(f"{each.name}={score:.4f}" for each, score in zip(hospitals, scores.sites, strict=True)),
        time.monotonic() - began,
    )


if __name__ == "__main__":
    sys.exit(main())

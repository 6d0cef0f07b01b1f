"""How good the classifier is: `make bench-accuracy`.

Trains on everybody's pictures together, by a federation of the four collections, and at each collection alone, with the
nodes' own training and the aggregator's own strategies in memory, for several seeds; whole networks. Every run's logits
of all held-out pictures are kept (`--runs`), one file a run: what was interrupted goes on, on another machine too.
`benchmarks.accuracy_report` scores them. README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concilia_client_node import dataset, evaluation
from concilia_kit import logs
from concilia_kit.lesions import CLASSES
from concilia_kit.wire.jobs import Schedule
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Architecture, Balance, LocalTraining
from torch import nn

from benchmarks import accuracy_report, federated_sites, kept_runs, simulation
from benchmarks.accuracy_report import FEDERATED, POOLED
from benchmarks.federated_sites import Level, Sites
from benchmarks.simulation import Hospital, Plan

ALONE = "alone"
SPLIT = "collections"
_WEIGHTS = Path("var/accuracy")
"""Where fetched weights are kept."""
_SAID_SECONDS = 30.0


@dataclass(frozen=True)
class Recipe:
    """What a run depends on, but for the code: the pictures, the network, and how it is trained."""

    data: str
    arch: str
    weights: str
    size: int
    contender: str
    seed: int
    rounds: int
    epochs: int
    batch: int
    rate: float
    decay: float
    balance: str
    smoothing: float
    mixup: float
    optimizer: str
    strategy: str
    server_rate: float | None
    momentum: float | None
    head_rounds: int
    statistics_rounds: int | None
    images: int | None

    @property
    def name(self) -> str:
        """Of the run's files."""
        return f"{self.contender.replace(':', '-')}-{self.seed}-{kept_runs.digest_of(asdict(self))}"

    def plan(self) -> Plan:
        """As the simulator takes it."""
        local = LocalTraining(
            epochs=self.epochs,
            batch_size=self.batch,
            learning_rate=self.rate,
            weight_decay=self.decay,
            image_size=self.size,
            balance=Balance(self.balance),
            label_smoothing=self.smoothing,
            mixup=self.mixup,
            optimizer=self.optimizer,
            max_images=self.images,
        )
        schedule = Schedule(
            whole_job=True, warm_up=0.5, head_rounds=self.head_rounds, statistics_rounds=self.statistics_rounds
        )
        strategy = Strategy(name=self.strategy, server_rate=self.server_rate, beta1=self.momentum)
        return Plan(strategy, local, self.rounds, 1, self.seed, schedule=schedule)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what runs are missing, then report; 0, or 1 where weights cannot be had or do not fit."""
    options = _options(arguments)
    logs.configure("bench-accuracy", "text", "WARNING")
    try:
        weights = federated_sites.weights_of(options.arch, options.weights, _WEIGHTS)
        level = Level(options.data, weights, True, options.size, "", _WEIGHTS, None, options.arch)
        federated_sites.whole(level, 0)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    with federated_sites.folder_of(options.data) as data:
        folder = dataset.read(data)
        wanted = _wanted(options, folder.source, len(folder.collections()) or 4)
        missing = [each for each in wanted if not _path(options.runs, each).exists()]
        print(f"{len(missing)} of {len(wanted)} runs on {folder.source} to make: {level.name}", file=sys.stderr)
        make = partial(_make, level=replace(level, data=data), runs=options.runs)
        for each, seconds, far in kept_runs.make(make, missing, options.workers):
            print(f"  [{far}] {each.contender}, seed {each.seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
    paths = [_path(options.runs, each) for each in wanted]
    return accuracy_report.report(paths, options.output)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in HAM10000's layout; without it lesions are drawn")
    parser.add_argument("--arch", type=Architecture, default=Architecture.MOBILENET_V2)
    parser.add_argument(
        "--weights", default="random", help="safetensors file of the trunk; 'imagenet' fetches torchvision's; 'random'"
    )
    parser.add_argument("--size", type=int, default=128, help="side of the input, pixels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    contenders = (POOLED, FEDERATED, ALONE)
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=contenders)
    parser.add_argument("--rounds", type=int, default=12, help="of the federation")
    parser.add_argument("--images", type=int, help="training pictures a hospital and round at most (default: all)")
    parser.add_argument("--passes", type=int, default=12, help="over the pictures, of who trains without rounds")
    parser.add_argument("--epochs", type=int, default=1, help="of a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--balance", type=Balance, default=Balance.LOGIT)
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--mixup", type=float, default=0.0)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--strategy", default="class_balanced")
    parser.add_argument("--server-rate", type=float, help="of a server's optimiser (default: the strategy's)")
    parser.add_argument("--momentum", type=float, help="of a server's optimiser (default: the strategy's)")
    parser.add_argument("--head-rounds", type=int, default=0)
    parser.add_argument(
        "--statistics-rounds", type=int, help="after which normalisation's statistics stay (default: never)"
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("var/accuracy"), help="folder that runs are kept in")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(arguments)


def _wanted(options: argparse.Namespace, source: str, sites: int) -> list[Recipe]:
    """Long runs first, so that processes end together."""
    contenders = [each for each in options.contenders if each != ALONE]
    if ALONE in options.contenders:
        contenders += [f"{ALONE}:{at}" for at in range(sites)]
    weights = options.weights if options.weights in ("imagenet", "random") else Path(options.weights).name
    found = []
    for contender in contenders:
        is_federated = contender == FEDERATED
        found += [
            Recipe(
                data=source,
                arch=options.arch.value,
                weights=weights,
                size=options.size,
                contender=contender,
                seed=seed,
                rounds=options.rounds if is_federated else options.passes,
                epochs=options.epochs,
                batch=options.batch,
                rate=options.rate,
                decay=options.decay,
                balance=options.balance.value,
                smoothing=options.smoothing,
                mixup=options.mixup,
                optimizer=options.optimizer,
                # What only a federation has is no part of what others depend on.
                strategy=options.strategy if is_federated else "fedavg",
                server_rate=options.server_rate if is_federated else None,
                momentum=options.momentum if is_federated else None,
                head_rounds=options.head_rounds if is_federated else 0,
                statistics_rounds=options.statistics_rounds if is_federated else None,
                images=options.images if is_federated else None,
            )
            for seed in options.seeds
        ]
    return found


def _path(runs: Path, recipe: Recipe) -> Path:
    return runs / f"{recipe.name}.npz"


def _make(recipe: Recipe, level: Level, runs: Path) -> float:
    """Make a run on one thread and write its file; seconds of training."""
    torch.set_num_threads(1)
    assert level.data is not None, "drawn by now, where none was named"
    hospitals = Sites(level, dataset.read(level.data)).hospitals(SPLIT, recipe.seed)
    plan, build = recipe.plan(), partial(federated_sites.whole, level)
    say = _saying(recipe)
    began = time.monotonic()
    network: nn.Module
    if recipe.contender == FEDERATED:
        network = simulation.federated(plan, hospitals, build, lambda number: say(number / recipe.rounds))
    elif recipe.contender == POOLED:
        network = simulation.at_once(plan, simulation.together(hospitals), build, say)
    else:
        mine = hospitals[int(recipe.contender.partition(":")[2])]
        network = simulation.at_once(plan, mine.training, build, say)
    seconds = time.monotonic() - began
    _write(_path(runs, recipe), recipe, network, hospitals, seconds)
    return seconds


def _saying(recipe: Recipe) -> Callable[[float], None]:
    told = time.monotonic()

    def say(done: float) -> None:
        nonlocal told
        if time.monotonic() - told >= _SAID_SECONDS:
            print(f"    {recipe.contender}, seed {recipe.seed}: {done:.0%}", file=sys.stderr, flush=True)
            told = time.monotonic()

    return say


def _write(path: Path, recipe: Recipe, network: nn.Module, hospitals: Sequence[Hospital], seconds: float) -> None:
    """Logits (n, classes) of all held-out pictures, plain and the mean over flips, with class, lesion and site. Lesions
    are numbered, and pictures are not named: the file tells nothing of the data but how it was answered."""
    device, sides = torch.device("cpu"), [each.held_out for each in hospitals]
    plain = [evaluation.logits(network, each, 128, device) for each in sides]
    flips = [evaluation.logits(network, each, 128, device, flips=True) for each in sides]
    columns: dict[str, Any] = {
        "plain": np.concatenate(plain).astype(np.float32),
        "flips": np.concatenate(flips).astype(np.float32),
        "labels": np.concatenate([np.array(each.labels, np.int8) for each in sides]),
        "lesions": np.unique([lesion for each in sides for lesion in each.lesions], return_inverse=True)[1],
        "sites": np.concatenate([np.full(len(side), at, np.int8) for at, side in enumerate(sides)]),
        "names": np.array([each.name for each in hospitals]),
        "counts": np.array([np.bincount(each.training.labels, minlength=len(CLASSES)) for each in hospitals]),
    }
    with kept_runs.whole(path) as file:
        np.savez_compressed(file, recipe=np.array(json.dumps(asdict(recipe))), seconds=np.array(seconds), **columns)


if __name__ == "__main__":
    sys.exit(main())

"""What differential privacy costs in accuracy: HAM10000's four collections at several epsilons, by `make bench-dp`.

`python -m benchmarks.dp --data FOLDER --weights FILE` trains a linear head on the frozen trunk's features by FedAvg,
each hospital by the nodes' own DP-SGD, whose unit is the lesion, and with the noise that dp-accounting finds for all
its steps. Learning rates, batch and rounds were chosen on seed 100 (some on 101 too), which divides the lesions
otherwise than those that are reported; what that choice cost is in no epsilon.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concilia_client_node import accounting, dataset
from concilia_client_node.sampling import Sampled, central, planned
from concilia_kit import logs
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Balance, LocalTraining

from benchmarks import federated_runs, results, simulation
from benchmarks.federated_sites import Level, Sites, folder_of
from benchmarks.simulation import Hospital, Plan

SPLIT = "collections"
NOISE_EACH, NOISE_ONE, NOISE_CENTRAL = "each hospital's own", "one for all", "the aggregator's"
PLAIN, EQUAL = "none", "none, classes drawn equally often"
RATES = {PLAIN: 0.03, EQUAL: 0.03}
"""Learning rates without privacy; the second is `benchmarks.strategies`' FedAvg."""


@dataclass(frozen=True)
class Case:
    """A row of the table: an epsilon, and how noise comes about."""

    epsilon: float
    noise: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 0."""
    options = _options(arguments)
    logs.configure("bench-dp", "text", "WARNING")
    torch.set_num_threads(1)
    began = time.monotonic()
    with folder_of(options.data) as data:
        folder = dataset.read(data)
        level = Level(data, options.weights, False, options.size, "linear", options.cache)
        sites = Sites(level, folder)
        rows = [row for seed in options.seeds for row in _of_seed(sites, seed, options)]
    document = {
        "data": folder.source,
        "level": level.name,
        "options": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "seconds": time.monotonic() - began,
        "runs": rows,
    }
    table = _words(document, rows, options)
    if options.out is not None:
        print(results.write("dp", document, table, options.out), file=sys.stderr)
    print(table)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.dp", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in HAM10000's layout; without it lesions are drawn")
    parser.add_argument("--weights", type=Path, help="safetensors file of MobileNetV2's trunk (default: random)")
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8.0, 3.0, 1.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256, help="lesions that are expected in a step")
    parser.add_argument("--rate", type=float, default=3.0, help="hospitals' learning rate with privacy")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument(
        "--one-noise", action="store_true", help="besides, all with the noise of whom it costs most, as a job has it"
    )
    parser.add_argument(
        "--central", action="store_true", help="besides, plain training, with noise at the aggregator (DP-FedAvg)"
    )
    parser.add_argument("--radius", type=float, default=1.0, help="what the aggregator cuts updates to")
    parser.add_argument("--plain-batch", type=int, default=64, help="pictures in a step without privacy")
    parser.add_argument("--size", type=int, default=224, help="side of the trunk's input, pixels")
    parser.add_argument("--cache", type=Path, default=Path("var/federated/features"))
    parser.add_argument("--out", type=Path, help="folder of results (default: none are kept)")
    return parser.parse_args(arguments)


def _of_seed(sites: Sites, seed: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    hospitals = sites.hospitals(SPLIT, seed)
    spec = federated_runs.parse("fedavg")
    for name, balance in ((EQUAL, Balance.SAMPLING), (PLAIN, Balance.NONE)):
        local = LocalTraining(batch_size=options.plain_batch, learning_rate=RATES[name], balance=balance, augment=False)
        plan = Plan(spec, local, options.rounds, min(3, options.rounds), seed)
        yield _row(Case(math.inf, name), plan, sites, hospitals, [])
    local = LocalTraining(
        batch_size=options.batch,
        learning_rate=options.rate,
        momentum=options.momentum,
        weight_decay=0,
        balance=Balance.NONE,
        augment=False,
    )
    plan = Plan(spec, local, options.rounds, min(3, options.rounds), seed)
    for wanted in options.epsilons:
        privacy = tuple(noise_of(wanted, local, each, options) for each in hospitals)
        most = max(privacy, key=lambda each: each.noise)
        ways = [(NOISE_EACH, privacy), *([(NOISE_ONE, (most,) * len(hospitals))] if options.one_noise else [])]
        for name, chosen in ways:
            done = [_planned(local, one, each) for one, each in zip(chosen, hospitals, strict=True)]
            yield _row(Case(wanted, name), replace(plan, privacy=chosen), sites, hospitals, done)
    if options.central:
        yield from _with_noise_at_the_aggregator(sites, hospitals, seed, options)


def _with_noise_at_the_aggregator(
    sites: Sites, hospitals: Sequence[Hospital], seed: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Every hospital trains as without privacy, classes as they come; one step a round is accounted for, of all."""
    local = LocalTraining(
        batch_size=options.plain_batch, learning_rate=RATES[PLAIN], balance=Balance.NONE, augment=False
    )
    for wanted in options.epsilons:
        noise = 2 * _noise_for(wanted, options.delta, 1.0, options.rounds)
        name = StrategyName.DP_FEDAVG
        spec = Strategy(name=name, radius=options.radius, noise=noise, delta=options.delta)
        plan = Plan(spec, local, options.rounds, min(3, options.rounds), seed)
        assert spec.central is not None, "it was given all"
        yield _row(Case(wanted, NOISE_CENTRAL), plan, sites, hospitals, [central(spec.central)] * len(hospitals))


def _planned(local: LocalTraining, privacy: Privacy, hospital: Hospital) -> Sampled:
    return planned(local, privacy, len(set(hospital.training.lesions)))


def noise_of(wanted: float, local: LocalTraining, hospital: Hospital, options: argparse.Namespace) -> Privacy:
    """The least noise with which all rounds of a hospital cost no more than an epsilon."""
    privacy = Privacy(noise=1.0, clip=options.clip, delta=options.delta)
    done = _planned(local, privacy, hospital)
    noise = _noise_for(wanted, options.delta, done.rate, done.steps * options.rounds)
    return privacy.model_copy(update={"noise": noise})


_noise_for = cache(accounting.noise_for)  # seeds divide the lesions otherwise, and not in other numbers


def _row(
    case: Case, plan: Plan, sites: Sites, hospitals: Sequence[Hospital], done: Sequence[Sampled]
) -> dict[str, Any]:
    began = time.monotonic()
    scores = simulation.run(plan, hospitals, sites.build).scores
    deltas = [each.delta for each in plan.privacy or ()]
    if plan.spec.central is not None:
        deltas = [plan.spec.central.delta] * len(done)
    row = {
        "epsilon": None if math.isinf(case.epsilon) else case.epsilon,
        "noise": case.noise,
        "seed": plan.seed,
        "balanced_accuracy": scores.balanced_accuracy,
        "accuracy": scores.accuracy,
        "worst_site": scores.worst,
        "melanoma_recall": scores.melanoma_recall,
        "hospitals": [
            {
                "name": hospital.name,
                "lesions": len(set(hospital.training.lesions)),
                **each.model_dump(),
                "rounds": plan.rounds,
                "epsilon": accounting.epsilon([each] * plan.rounds, delta),
            }
            for hospital, each, delta in zip(hospitals, done, deltas, strict=False)
        ],
        "seconds": time.monotonic() - began,
    }
    print(
        f"  seed {plan.seed}, ε {case.epsilon:g}, {case.noise}: balanced accuracy {scores.balanced_accuracy:.3f} "
        f"({row['seconds']:.0f} s)",
        file=sys.stderr,
        flush=True,
    )
    return row


def _words(document: dict[str, Any], rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table, and what it is of."""
    names = "balanced_accuracy", "accuracy", "worst_site", "melanoma_recall"
    lines = [
        "| ε | noise | balanced accuracy | ± | accuracy | worst site | melanoma | σ |",
        "|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for epsilon, noise in dict.fromkeys((row["epsilon"], row["noise"]) for row in rows):
        some = [row for row in rows if (row["epsilon"], row["noise"]) == (epsilon, noise)]
        means = {name: float(np.mean([row[name] for row in some])) for name in names}
        spread = float(np.std([row["balanced_accuracy"] for row in some], ddof=1)) if len(some) > 1 else math.nan
        found = sorted({round(each["noise"], 2) for row in some for each in row["hospitals"]})
        sigma = f"{found[0]} to {found[-1]}" if found else "–"
        lines.append(
            f"| {'∞' if epsilon is None else f'{epsilon:g}'} | {noise} | {means['balanced_accuracy']:.3f} "
            f"| {spread:.3f} | {means['accuracy']:.3f} | {means['worst_site']:.3f} | {means['melanoma_recall']:.3f} "
            f"| {sigma} |"
        )
    hospitals = next((row["hospitals"] for row in rows if row["hospitals"]), [])
    of_each = [
        f"| {each['name']} | {each['lesions']} | {each['rate']:.3f} | {each['steps']} × {each['rounds']} |"
        for each in hospitals
    ]
    return "\n".join(
        [
            f"{document['data']}, its four collections as hospitals, {document['level']}; FedAvg, {options.rounds} "
            f"rounds of one epoch; seeds {', '.join(map(str, options.seeds))}: each divides the lesions anew, and each "
            "run has noise of its own.",
            "",
            f"Unit: the lesion, with all its pictures. δ = {options.delta:g}. ε is each hospital's, of all its rounds "
            f"together, by dp-accounting (PLD). Batch {options.batch} expected, clip {options.clip:g}, learning rate "
            f"{options.rate:g}, momentum {options.momentum:g}, chosen on other seeds: that choice is in no ε. Scores "
            "are of all sites' held-out lesions, mean of the last three rounds, and mean and standard deviation (±) "
            "over seeds. Each hospital has the noise that its own sampling needs ('each hospital's own'); a job asks "
            "one noise of all, that of whom it costs most ('one for all', `--one-noise`). Of noise at the aggregator "
            f"(`--central`, updates cut to {options.radius:g}) σ is in multiples of what one update can move the sum.",
            "",
            *lines,
            "",
            f"Sampling, seed {options.seeds[0]}:",
            "",
            "| hospital | training lesions | rate | steps |",
            "|---|---:|---:|---:|",
            *of_each,
            "",
            f"{document['seconds']:.0f} s on one thread, features of the trunk not counted where they were kept.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

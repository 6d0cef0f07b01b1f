"""What a round costs beside Flower, NVFlare and the floor, with clients that return an update without training.

`python -m benchmarks.round --help` tells the options; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.contenders import Contender, ContenderFailed, Run, concilia, floor, flower, nvflare
from benchmarks.contenders.processes import PEERS

CONTENDERS: dict[str, Contender] = {
    "concilia": concilia.run,
    "floor": floor.plain,
    "lean floor": floor.lean,
    "nvflare": nvflare.run,
    "flower": flower.as_it_is,
    "flower, 4 tensors": flower.packed,
}


@dataclass
class Cell:
    """All runs of one contender with one number of clients."""

    name: str
    clients: int
    empty: bool
    runs: list[Run] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Medians over rounds for seconds, over runs for the rest; megabytes are of a million bytes."""
        costs = [(run.cost, run.rounds) for run in self.runs]
        parts = sorted({part for cost, _ in costs for part in cost.resident_of})
        return {
            "contender": self.name,
            "clients": self.clients,
            "model": not self.empty,
            "seconds": statistics.median(second for run in self.runs for second in run.seconds),
            "fastest": min(second for run in self.runs for second in run.seconds),
            "slowest": max(second for run in self.runs for second in run.seconds),
            "samples": [second for run in self.runs for second in run.seconds],
            "server_cpu_seconds": statistics.median(cost.cpu_seconds / rounds for cost, rounds in costs),
            "server_cpu_of": {
                part: statistics.median(cost.cpu.get(part, 0.0) / rounds for cost, rounds in costs) for part in parts
            },
            "server_resident_mb": statistics.median(cost.resident for cost, _ in costs) / 1e6,
            "server_proportional_mb": statistics.median(cost.proportional for cost, _ in costs) / 1e6,
            "server_resident_mb_of": {
                part: statistics.median(cost.resident_of.get(part, 0) for cost, _ in costs) / 1e6 for part in parts
            },
            "wire_mb": statistics.median(cost.wire / rounds for cost, rounds in costs) / 1e6,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the results; 1 where a contender fails."""
    options = _options(arguments)
    cells = [
        Cell(name, clients, empty)
        for empty in (True, False)
        for clients in options.clients
        for name in options.contenders
    ]
    try:
        for repetition in range(options.repetitions):
            for cell in cells:
                words = "no model" if cell.empty else "ResNet50"
                print(
                    f"{cell.name}, {cell.clients} clients, {words}, run {repetition + 1}",
                    file=sys.stderr,
                    end="",
                    flush=True,
                )
                folder = options.scratch / f"{cell.name.replace(', ', '-').replace(' ', '-')}"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                run = CONTENDERS[cell.name](cell.clients, options.rounds, cell.empty, folder.resolve())
                print(f": {statistics.median(run.seconds):.2f} s a round", file=sys.stderr)
                cell.runs.append(run)
                shutil.rmtree(folder)
    except ContenderFailed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    rows = [cell.row() for cell in cells]
    table = _table(rows)
    print(table)
    peers = {name: (PEERS / f"{name}.txt").read_text().split() for name in ("flower", "nvflare")}
    document = {"rounds": options.rounds, "repetitions": options.repetitions, "peers": peers, "rows": rows}
    pins = " ".join(pin for pins in peers.values() for pin in pins)
    results.write("round", document, f"{table}\n\nPeers: {pins}. {options.rounds} rounds a run.", options.output)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round", description="What a round costs.")
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=4, help="in a run; the first is not measured")
    parser.add_argument("--repetitions", type=int, default=1, help="runs of each, in turns")
    parser.add_argument("--scratch", type=Path, default=Path("var/bench/round"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.repetitions < 1:
        parser.error("two rounds at least, the first of which is not measured")
    return options


def _table(rows: Sequence[dict[str, Any]]) -> str:
    heads = (
        "clients",
        "model",
        "who",
        "s/round",
        "to NVFlare",
        "to floor",
        "server CPU s",
        "server MB",
        "PSS MB",
        "wire MB",
    )
    lines = [f"| {' | '.join(heads)} |", "|---:|---|---|" + "---:|" * 7]
    for row in rows:
        same = {
            each["contender"]: each
            for each in rows
            if (each["clients"], each["model"]) == (row["clients"], row["model"])
        }
        ratios = [
            f"{row['seconds'] / same[name]['seconds']:.2f}" if name in same else "" for name in ("nvflare", "floor")
        ]
        numbers = (
            *(str(row["clients"]), "ResNet50" if row["model"] else "none", row["contender"], f"{row['seconds']:.2f}"),
            *ratios,
            *(f"{row['server_cpu_seconds']:.2f}", f"{row['server_resident_mb']:.0f}"),
            *(f"{row['server_proportional_mb']:.0f}", f"{row['wire_mb']:.1f}"),
        )
        lines.append(f"| {' | '.join(numbers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which stops what was started
    sys.exit(main())

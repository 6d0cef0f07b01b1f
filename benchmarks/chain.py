"""What recording a round's updates costs: gas and seconds an update, five ways, on Ganache and on Anvil.

`python -m benchmarks.chain --help` tells the options; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks import gateway, nodes, trees
from benchmarks.cohort import BATCH, Ledger, Sample

MODES = ("alone", "batched", "merkle", "gateway", "gateway-merkle")  # the first is the baseline
CHEAP = 100  # updates; more are measured once
TREE_REPETITIONS = 5
_WORDS = {
    "alone": "one transaction each",
    "batched": f"batches of {BATCH} or fewer",
    "merkle": "one commitment",
    "gateway": "gateway, recorded",
    "gateway-merkle": "gateway, committed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; 1 where a node fails."""
    options = _options(arguments)
    rows: list[dict[str, Any]] = []
    try:
        for name in options.nodes:
            rows += _on_node(name, options.counts, options.repetitions)
        costs = [trees.compare(count, TREE_REPETITIONS) for count in options.counts]
    except (RuntimeError, httpx.HTTPError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version()},
        "repetitions": {"up_to": CHEAP, "count": options.repetitions},
        "rows": rows,
        "trees": [
            {"leaves": each.leaves, "concilia": each.concilia._asdict(), "pymerkle": each.pymerkle._asdict()}
            for each in costs
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    _print_chain(rows)
    _print_trees(costs)
    print(f"\nall samples: {options.output}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chain", description="Gas and seconds an update.")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100, 1000], help="updates in a round")
    parser.add_argument("--nodes", nargs="+", choices=nodes.NAMES, default=list(nodes.NAMES))
    parser.add_argument(
        "--repetitions", type=int, default=3, help=f"rounds of {CHEAP} or fewer updates; the median counts"
    )
    parser.add_argument("--output", type=Path, default=Path("var/bench-chain.json"))
    options = parser.parse_args(arguments)
    if min(options.counts) < 1 or options.repetitions < 1:
        parser.error("counts and repetitions are 1 or more")
    return options


def _on_node(name: str, counts: Sequence[int], repetitions: int) -> list[dict[str, Any]]:
    with nodes.running(name) as node:
        version = node.ask("web3_clientVersion")
        _say(f"{name}: {version}; enrolling {max(counts)} hospitals")
        ledger = Ledger(node, max(counts))
        direct = (ledger.alone, ledger.batched, ledger.committed)
        samples = _measured(name, dict(zip(MODES[:3], direct, strict=True)), counts, repetitions)
        with gateway.running(ledger) as service:  # only now: it reads every block that the others make
            through = (service.recorded, service.committed)
            samples |= _measured(name, dict(zip(MODES[3:], through, strict=True)), counts, repetitions)
    rows: list[dict[str, Any]] = []
    for count in counts:
        made = [_row(name, version, count, mode, samples[mode, count]) for mode in MODES]
        for row in made:
            for field in ("gas", "milliseconds"):
                row[f"{field}_to_baseline"] = row[field] / made[0][field]
        rows += made
    return rows


def _measured(
    name: str, ways: Mapping[str, Callable[[int], Sample]], counts: Sequence[int], repetitions: int
) -> dict[tuple[str, int], list[Sample]]:
    """Samples by mode and count. Modes take turns, so that what else the machine does touches all of them."""
    for way in ways.values():
        way(min(CHEAP, max(counts)))  # a node's first transactions are its slowest; not counted
    samples: dict[tuple[str, int], list[Sample]] = {}
    for count in counts:
        for at in range(repetitions if count <= CHEAP else 1):
            for mode, way in ways.items():
                _say(f"{name}: {count} updates, {_WORDS[mode]}, round {at + 1}")
                samples.setdefault((mode, count), []).append(way(count))
    return samples


def _row(name: str, version: str, count: int, mode: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Medians, an update; `milliseconds` from first sending to last receipt."""
    disputes = [each.dispute_gas for each in samples if each.dispute_gas is not None]
    return {
        "node": name,
        "version": version,
        "updates": count,
        "mode": mode,
        "transactions": samples[0].transactions,
        "gas": statistics.median(each.gas for each in samples) / count,
        "milliseconds": statistics.median(each.seconds for each in samples) / count * 1000,
        "signing_milliseconds": statistics.median(each.signing_seconds for each in samples) / count * 1000,
        "opening_gas": statistics.median(each.opening_gas for each in samples),
        "dispute_gas": statistics.median(disputes) if disputes else None,
        "samples": [asdict(each) for each in samples],
    }


def _print_chain(rows: Sequence[dict[str, Any]]) -> None:
    heads = ("node", "updates", "mode", "transactions", "gas/update", "ratio", "ms/update", "ratio", "signing ms")
    widths = (8, 8, 22, 13, 12, 7, 11, 7, 11)
    print(_line(heads, widths))
    for row in rows:
        numbers = (
            *(row["transactions"], f"{row['gas']:,.0f}", f"{row['gas_to_baseline']:.3f}"),
            *(f"{row['milliseconds']:.3f}", f"{row['milliseconds_to_baseline']:.3f}"),
            f"{row['signing_milliseconds']:.2f}",
        )
        print(_line((row["node"], f"{row['updates']:,}", _WORDS[row["mode"]], *numbers), widths))
    proofs: dict[int, list[float]] = {}
    for row in rows:
        if row["dispute_gas"] is not None:
            proofs.setdefault(row["updates"], []).append(row["dispute_gas"])
    told = [f"{statistics.median(gas):,.0f} gas at {count:,}" for count, gas in sorted(proofs.items())]
    print("\nproving one committed update on chain:", ", ".join(told))


def _print_trees(costs: Sequence[trees.Compared]) -> None:
    heads = ("leaves", "microseconds a leaf", "Concilia", "pymerkle", "ratio")
    widths = (8, 22, 11, 11, 7)
    print()
    print(_line(heads, widths))
    for each in costs:
        for at, what in enumerate(("leaf hashes and root", "proof", "verification")):
            ours, theirs = each.concilia[at], each.pymerkle[at]
            print(_line((f"{each.leaves:,}", what, f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"), widths))


def _line(cells: Sequence[object], widths: Sequence[int]) -> str:
    words = {0, 2} if len(cells) > 5 else {1}  # columns that hold words stand to the left
    return " ".join(
        f"{cell!s:<{width}}" if at in words else f"{cell!s:>{width}}"
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

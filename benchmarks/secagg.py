"""What secure aggregation costs: bytes, CPU seconds and time of a round beside a plain one and Flower's SecAgg+.

All in one process, from a trained model's tensors to its file, and from files to the new model: what a line takes is
left out on all sides. `python -m benchmarks.secagg --help` tells the options; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from concilia_kit.masking import Mask
from concilia_kit.masking.graph import degree
from concilia_kit.masking.stream import apply

from benchmarks import results, secagg_rounds
from benchmarks.contenders.processes import PEERS, environment
from benchmarks.peers.payload import shapes
from benchmarks.secagg_rounds import SECURE

PLAIN, MASKED, FLOWER = "plain", "Concilia", "Flower SecAgg+"
WHOLE = 16
"""Most hospitals whose updates are whole; of more each is a part, for Flower's server to hold all of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write JSON and Markdown."""
    options = _options(arguments)
    folder = Path(tempfile.mkdtemp(prefix="secagg-", dir=options.folder))
    samples: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    try:
        for at in range(options.repetitions):
            for count in options.counts:
                for lost in (0, count // 4):
                    for who, found in _rounds(folder, count, lost, options):
                        samples.setdefault((count, lost, who), []).append(found)
                _say(f"{count} hospitals, run {at + 1}")
        floor = _floor()
        alone = _alone(folder, options.cohort, options.peers) if options.cohort else []
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [_row(*key, found) for key, found in samples.items()]
    table = "\n".join([_floor_line(floor, rows), "", _table(rows), *(["", _alone_table(alone)] if alone else [])])
    print(table)
    document = {
        "repetitions": options.repetitions,
        "parts": options.parts,
        "floor": floor,
        "rows": rows,
        "alone": alone,
    }
    print(f"\nall samples: {results.write('secagg', document, table, options.output)}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secagg", description="What secure aggregation costs.")
    parser.add_argument("--counts", type=int, nargs="*", default=[4, 16, 64], help="hospitals of a round")
    parser.add_argument("--parts", type=int, default=4, help=f"of each tensor one in so many, beyond {WHOLE} hospitals")
    parser.add_argument("--cohort", type=int, default=1000, help="of which one hospital's part is measured; 0: none")
    parser.add_argument("--repetitions", type=int, default=3, help="the median counts")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without Flower")
    parser.add_argument("--folder", type=Path, help="for 102 MB a hospital; the system's own place if not given")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if options.repetitions < 1 or min(options.counts, default=3) < 3:
        parser.error("a round has 3 hospitals or more, and there is at least one")
    return options


def _rounds(folder: Path, count: int, lost: int, options: argparse.Namespace) -> list[tuple[str, dict[str, float]]]:
    place = folder / "round"
    place.mkdir()
    try:
        base, trained = secagg_rounds.models(place, 1 if count <= WHOLE else options.parts)
        found = [(MASKED, secagg_rounds.masked(place, count, lost, base, trained))]
        if not lost:
            found.append((PLAIN, secagg_rounds.plain(place, count, base, trained)))
        if options.peers:
            found.append((FLOWER, _flower("round", count, lost, place / "base", place / "trained")))
        return found
    finally:
        shutil.rmtree(place)


def _flower(*arguments: object) -> dict[str, float]:
    command = [environment("flower") / "python", PEERS / "secagg.py", *arguments]
    done = subprocess.run([str(each) for each in command], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _alone(folder: Path, cohort: int, peers: bool) -> list[dict[str, Any]]:
    """One hospital's part in a round of so many."""
    ours = secagg_rounds.alone(folder, cohort)
    found: list[dict[str, Any]] = [{"who": MASKED, **ours}]
    if peers:
        shares = degree(cohort, SECURE.threshold).shares
        theirs = _flower("client", ours["neighbours"], shares, folder / "trained")
        found.append({"who": FLOWER, **{name: ours[name] for name in ("hospitals", "neighbours", "plain")}, **theirs})
    return found


def _floor() -> dict[str, float]:
    """Seconds that a copy, a SHA-256 and a keystream of one update take, and one mask put on."""
    count = sum(int(np.prod(shape)) for shape in shapes().values())
    words = np.arange(count, dtype=np.int32)
    other = words.copy()

    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: np.copyto(other, words),
        "sha256": lambda: hashlib.sha256(words.data).digest(),
        "mask": lambda: apply(words, 0, [Mask(bytes(32), 1)]),
    }
    return {what: min(_seconds(step) for _ in range(5)) for what, step in steps.items()}


def _seconds(step: Callable[[], object]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def _row(count: int, lost: int, who: str, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    names = [name for name in found[0] if name != "peak"]
    return {
        "hospitals": count,
        "lost": lost,
        "who": who,
        **{name: statistics.median(each[name] for each in found) for name in names},
        "samples": list(found),
    }


def _floor_line(floor: dict[str, float], rows: Sequence[dict[str, Any]]) -> str:
    said = [
        f"102.2 MB, in ms: a copy {1e3 * floor['copy']:.1f}, SHA-256 {1e3 * floor['sha256']:.1f}, one mask (AES-256 "
        f"and its addition) {1e3 * floor['mask']:.1f}."
    ]
    for row in rows:
        if row["who"] == MASKED and not row["lost"] and row["hospitals"] <= WHOLE:
            times = row["client"] / floor["copy"], row["client"] / floor["sha256"]
            said.append(
                f"A hospital's part among {row['hospitals']} is {times[0]:.0f} copies, {times[1]:.1f} times SHA-256."
            )
    return " ".join(said)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| hospitals | lost | who | MB sent | times plain | KB received beside | client s | client CPU s | server s |"
        " server CPU s | round s | times plain | largest error |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    plain = {row["hospitals"]: row for row in rows if row["who"] == PLAIN}
    order = (PLAIN, MASKED, FLOWER)
    for row in sorted(rows, key=lambda row: (row["hospitals"], row["lost"], order.index(row["who"]))):
        beside = plain[row["hospitals"]]
        whole, plainly = row["client"] + row["server"], beside["client"] + beside["server"]
        cells = (
            str(row["hospitals"]),
            str(row["lost"]),
            row["who"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['bytes'] / beside['bytes']:.4f}",
            f"{row['received'] / 1e3:.1f}" if "received" in row else "",
            f"{row['client']:.3f}",
            f"{row['client_cpu']:.3f}",
            f"{row['server']:.3f}",
            f"{row['server_cpu']:.3f}",
            f"{whole:.3f}",
            f"{whole / plainly:.1f}",
            f"{row['error']:.1e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _alone_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| hospitals | neighbours | who | client s | client CPU s | MB sent | times plain | KB received beside |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = (
            str(row["hospitals"]),
            str(row["neighbours"]),
            row["who"],
            f"{row['client']:.2f}",
            f"{row['client_cpu']:.2f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['bytes'] / row['plain']:.4f}",
            f"{row['received'] / 1e3:.0f}" if "received" in row else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

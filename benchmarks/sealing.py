"""What encryption at rest costs: uploads, downloads, screening and folds beside those of files that lie as they are.

Two model services with their peers, one with a key; what is measured takes turns between them. `python -m
benchmarks.sealing --help` tells the options; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from concilia.connection import Connection, Endpoints
from concilia.stack.supervisor import running as alive
from concilia_aggregator.folding import Recipe, fold
from concilia_aggregator.screening import Base, Limits, screen
from concilia_kit import transfer
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import StoredFile
from concilia_kit.streaming import Line
from concilia_kit.tensorfile import TensorFile, TensorSpec, TensorWriter
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Architecture

from benchmarks import results, scale_services
from benchmarks.peers.payload import shapes

PLAIN, SEALED = "plain", "sealed"
_LIMITS = Limits(10**9, 1e9)


@dataclass(frozen=True)
class Side:
    """One of the two: its files' keys, and its services."""

    keys: Keyring
    services: scale_services.Services
    model: httpx.Client


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON and Markdown."""
    options = _options(arguments)
    folder = Path(tempfile.mkdtemp(prefix="sealing-", dir=options.folder))
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    try:
        with _sides(folder, options.port) as sides:
            for at in range(options.repetitions):
                _moved(sides, folder, samples)
                _say(f"moved, run {at + 1}")
        for count in options.counts:
            _folded(folder, count, options.repetitions, samples)
    except (RuntimeError, httpx.HTTPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [_row(what, samples) for what in dict.fromkeys(what for what, _ in samples)]
    table = _table(rows)
    print(table)
    document = {"repetitions": options.repetitions, "rows": rows}
    print(f"\nall samples: {results.write('sealing', document, table, options.output)}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sealing", description="What encryption at rest costs.")
    parser.add_argument("--counts", type=int, nargs="*", default=[8, 32], help="updates of a fold")
    parser.add_argument("--repetitions", type=int, default=5, help="the median counts")
    parser.add_argument("--port", type=int, default=9500)
    parser.add_argument("--folder", type=Path, help="for 102 MB an update, twice; the system's own place if not given")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if min([options.repetitions, *options.counts]) < 1:
        parser.error("counts and repetitions are 1 or more")
    return options


@contextlib.contextmanager
def _sides(folder: Path, port: int) -> Iterator[dict[str, Side]]:
    key = folder / "key"
    key.write_text(secrets.token_hex(32))
    settings = {"CONCILIA_MODEL_SCRUB_MEGABYTES_PER_SECOND": "0"}
    with contextlib.ExitStack() as ending:
        plain = ending.enter_context(scale_services.running(folder / PLAIN, port, anvil=False, settings=settings))
        settings["CONCILIA_MODEL_SEALING_KEY_FILE"] = str(key)
        sealed = ending.enter_context(
            scale_services.running(folder / SEALED, port + 20, anvil=False, settings=settings)
        )
        rings = ((PLAIN, NO_KEYS, plain), (SEALED, Keyring.read(str(key)), sealed))
        yield {
            name: Side(keys, services, Connection(Endpoints.read(services.layout.connection_file)).model)
            for name, keys, services in rings
        }


def _moved(sides: dict[str, Side], folder: Path, samples: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    """An update to each service and back: by what clients use, and as fast as bytes that are thrown away can come."""
    path, target = folder / "update", folder / "got"
    digest = _update(path, secrets.randbits(60))
    size = path.stat().st_size
    for name, side in sides.items():
        to = side.model
        process = psutil.Process(alive(side.services.layout.directory)["model"])
        steps: dict[str, Callable[[], object]] = {
            "upload": partial(transfer.upload, to, digest, path),
            "download": partial(transfer.download, to, digest, target),
            "download, thrown away": partial(_thrown_away, to, digest, size),
        }
        for what, step in steps.items():
            samples.setdefault((what, name), []).append({"bytes": size, **_measured(step, process)})
        target.unlink()
        with StoredFile.open(side.services.layout.artifacts / digest[:2] / digest, side.keys) as stored:
            assert (stored.seal is None) == (name == PLAIN), "the store is not what it was taken for"


def _thrown_away(to: httpx.Client, digest: str, size: int) -> None:
    with Line(to, lambda: None) as line:
        line.ask("GET", f"/v1/artifacts/{digest}", {})
        assert sum(map(len, line.body())) == size


def _folded(folder: Path, count: int, repetitions: int, samples: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    rings = {PLAIN: NO_KEYS, SEALED: Keyring.read(str(folder / "key"))}
    files: dict[str, list[TensorFile]] = {}
    for name, keys in rings.items():
        made = folder / f"updates-{name}"
        made.mkdir(exist_ok=True)
        for at in range(count):
            if not (made / str(at)).exists():
                _update(made / str(at), at, keys)
        files[name] = [TensorFile.open(made / str(at), keys) for at in range(count)]
    size = sum(len(piece) for piece in files[PLAIN][0].raw())
    weights = [1000 + 37 * at for at in range(count)]
    recipe = Recipe(Architecture.RESNET50, 1, Strategy())
    for at in range(repetitions + 1):
        digests = set()
        for name, keys in rings.items():
            target = folder / "folded"
            begun = time.perf_counter()
            digests.add(fold(files[name], weights, recipe, target, keys=keys))
            seconds = time.perf_counter() - begun
            if at:  # the first one brings files into memory
                samples.setdefault((f"fold of {count}", name), []).append({"bytes": size * count, "seconds": seconds})
            if count == min(count, 8):
                base = Base.of(files[name][0])
                begun = time.perf_counter()
                screen(files[name][1 % count], base, 1, None, _LIMITS)
                seconds = time.perf_counter() - begun
                if at:
                    samples.setdefault(("screening", name), []).append({"bytes": size, "seconds": seconds})
        assert len(digests) == 1, "sealed updates came to other bytes"
        _say(f"fold of {count}, run {at}")


def _update(path: Path, seed: int, keys: Keyring = NO_KEYS) -> str:
    """An update of ResNet50's shapes; its SHA-256."""
    rng = np.random.default_rng(seed)
    specs = {name: TensorSpec(np.dtype("<f4"), shape) for name, shape in shapes().items()}
    with TensorWriter(path, specs, lasting=False, keys=keys) as writer:
        for name in writer.order:
            writer.append(rng.standard_normal(specs[name].size, np.float32))
    return writer.digest


def _measured(step: Callable[[], object], process: psutil.Process) -> dict[str, float]:
    before, begun = process.cpu_times(), time.perf_counter()
    step()
    seconds, after = time.perf_counter() - begun, process.cpu_times()
    return {"seconds": seconds, "cpu": after.user + after.system - before.user - before.system}


def _row(what: str, samples: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, Any]:
    plain, sealed = samples[what, PLAIN], samples[what, SEALED]
    both = ((PLAIN, plain), (SEALED, sealed))
    seconds = {name: statistics.median(each["seconds"] for each in found) for name, found in both}
    cpu = {name: statistics.median(each["cpu"] for each in found) for name, found in both if "cpu" in found[0]}
    return {
        "what": what,
        "bytes": plain[0]["bytes"],
        "seconds": seconds,
        "service_cpu": cpu,
        "ratio": seconds[SEALED] / seconds[PLAIN],
        "samples": {PLAIN: plain, SEALED: sealed},
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| what | MB | plain s | sealed s | ratio | service's CPU, plain s | sealed s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        seconds = [f"{row['seconds'][name]:.3f}" for name in (PLAIN, SEALED)]
        cpu = [f"{row['service_cpu'][name]:.3f}" if row["service_cpu"] else "" for name in (PLAIN, SEALED)]
        cells = (row["what"], f"{row['bytes'] / 1e6:.0f}", *seconds, f"{row['ratio']:.2f}", *cpu)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

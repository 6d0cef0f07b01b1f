"""What the services do when many ask at one time: each public route by itself, 200 clients, the real stack.

Ends with 1 where an answer was a 5xx that nobody meant, where there was none, or where memory did not come back.
`python -m benchmarks.load --help` tells the options; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from concilia.stack.supervisor import running as alive
from concilia_kit.roles import Role
from concilia_kit.wire.jobs import JobSpec, Phase

from benchmarks import load_clients, load_routes, results, scale_hospitals, scale_services
from benchmarks.load_routes import Route, State
from benchmarks.scale_services import Services

PORT = 9600
CLIENTS = 200
RESULTS = Path(__file__).with_name("results")
SETTLE_SECONDS = 10.0
"""How long memory may take to come back."""
GROWTH_SHARE, GROWTH_BYTES = 0.2, 20 * 10**6
"""What may stay of a service's memory before a route's load: this share, and these bytes besides."""
_JOB_SECONDS = 60.0
_ROUNDS = 100
_ELEMENTS = 256
_WARM = ("/readyz", "/metrics")
_UNLIMITED = {f"CONCILIA_AUTH_{who}_RATE": str(10**9) for who in ("ADDRESS", "SOURCE")}
"""All clients are one address at one place, and are counted as everybody is."""


@dataclass
class Cohort(scale_hospitals.Cohort):
    """One hospital that takes part in a job, and keeps what it said, by path."""

    said: dict[str, Any] = field(default_factory=dict)

    async def _ask(self, *given: Any, **named: Any) -> bytes:
        if isinstance(body := named.get("body"), str):
            self.said[given[3]] = json.loads(body)
        return await super()._ask(*given, **named)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON and Markdown; 1 where something is not as it should be."""
    options = _options(arguments)
    folder = Path(tempfile.mkdtemp(prefix="load-"))
    try:
        with scale_services.running(folder / "stack", options.port, anvil=False, settings=_UNLIMITED) as services:
            rows = asyncio.run(_measure(services, options))
    except (RuntimeError, httpx.HTTPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            shutil.copytree(folder, options.keep, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    table = _table(rows, options)
    print(table)
    document = {"clients": options.clients, "seconds": options.seconds, "rows": rows}
    print(f"\nall numbers: {results.write('load', document, table, options.output)}")
    return 1 if any(row["faults"] for row in rows) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description="Every public route under load.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each route")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="who ask at one time")
    parser.add_argument("--routes", default="", help="only those whose 'service METHOD /path' has this (re.search)")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="keep logs and databases in this folder")
    options = parser.parse_args(arguments)
    if options.clients < 1 or options.seconds <= 0:
        parser.error("clients are 1 or more, seconds more than 0")
    return options


async def _measure(services: Services, options: argparse.Namespace) -> list[dict[str, Any]]:
    _say("making a job's worth of state")
    state = await make_state(services)
    routes = [each for each in load_routes.public(services) if re.search(options.routes, each.name)]
    # Threads, and what they keep, are there from the first request that needs them on; it is no route's.
    for service in sorted({route.service for route in routes}):
        for path in _WARM:
            sent = load_routes.request(services, Route(service, "GET", path), state)
            await load_clients.load(services.layout.url(service), sent, options.clients, min(1.0, options.seconds))
    rows = []
    for route in routes:
        rows.append(await _load(services, route, state, options))
        _say(json.dumps(rows[-1]))
    return rows


async def _load(services: Services, route: Route, state: State, options: argparse.Namespace) -> dict[str, Any]:
    process = psutil.Process(alive(services.layout.directory)[route.service])
    before = _memory(process)
    sent = load_routes.request(services, route, state)
    began = time.monotonic()
    answers = await load_clients.load(services.layout.url(route.service), sent, options.clients, options.seconds)
    seconds = time.monotonic() - began
    after = _memory(process)
    allowed = before * (1 + GROWTH_SHARE) + GROWTH_BYTES
    settled, until = after, time.monotonic() + SETTLE_SECONDS
    while settled > allowed and time.monotonic() < until:
        await asyncio.sleep(0.5)
        settled = _memory(process)
    faults = [f"{count} × {what}" for what, count in sorted(answers.accidents.items())]
    if settled > allowed:
        faults.append(f"memory grew by {(settled - before) / 1e6:.0f} MB")
    return {
        "route": route.name,
        "requests": answers.statuses.total(),
        "a_second": round(answers.statuses.total() / seconds, 1),
        "p50_ms": round(answers.quantile(0.5) * 1000, 1),
        "p99_ms": round(answers.quantile(0.99) * 1000, 1),
        "statuses": dict(sorted(answers.statuses.items())),
        "memory_mb": [round(each / 1e6, 1) for each in (before, after, settled)],
        "faults": faults,
    }


async def make_state(services: Services) -> State:
    """A hospital with every role besides, and a job of one round that it took part in. Raises `RuntimeError`."""
    hospital = scale_hospitals.make(1, services.signing)[0]
    deadline = int(time.time()) + 600
    for role in Role:
        await asyncio.to_thread(services.admin.change_role, role, hospital.address, granted=True, deadline=deadline)
    base = services.layout.directory / "base.safetensors"
    base.write_bytes(scale_hospitals.model(0, _ELEMENTS))
    initial = await asyncio.to_thread(services.admin.upload, base)
    urls = {name: services.layout.url(name) for name in ("model", "chain", "aggregator")}
    async with Cohort([hospital], urls, services.redis_url, _ELEMENTS, 1) as cohort:
        await cohort.register()
        # Stopped after a round: no model is published, which numbers that fit no architecture cannot be.
        spec = JobSpec(name="load", initial=initial, rounds=_ROUNDS, quorum=1)
        job = (await asyncio.to_thread(services.admin.create_job, spec)).id
        working = asyncio.create_task(cohort.work(3 * _ROUNDS))  # until it is stopped
        try:
            async with asyncio.timeout(_JOB_SECONDS):
                while f"/v1/jobs/{job}/rounds/1/evaluations/{hospital.address}" not in cohort.said:
                    await asyncio.sleep(0.1)
                await asyncio.to_thread(services.admin.stop_job, job)
                while (await asyncio.to_thread(services.admin.job, job)).phase is not Phase.STOPPED:
                    await asyncio.sleep(0.2)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        said = cohort.said
    return State(
        caller=hospital.address,
        job=job,
        digest=initial,
        artifact=base.read_bytes(),
        update=said["/v1/updates"],
        registration=said[f"/v1/nodes/{hospital.address}"],
        evaluation=said[f"/v1/jobs/{job}/rounds/1/evaluations/{hospital.address}"],
    )


def _memory(process: psutil.Process) -> int:
    """Resident bytes of a process and what it started."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total


def _table(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        f"{options.clients} clients, {options.seconds:g} s a route.",
        "",
        "| route | requests | a second | p50 ms | p99 ms | answers | MB before, after, settled | faults |",
        "|---|---:|---:|---:|---:|---|---:|---|",
    ]
    for row in rows:
        answers = ", ".join(f"{count:,} × {status}" for status, count in row["statuses"].items())
        memory = ", ".join(f"{each:.0f}" for each in row["memory_mb"])
        lines.append(
            f"| {row['route']} | {row['requests']:,} | {row['a_second']:,.0f} | {row['p50_ms']:.0f} "
            f"| {row['p99_ms']:.0f} | {answers} | {memory} | {'; '.join(row['faults'])} |"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which stops what was started
    sys.exit(main())

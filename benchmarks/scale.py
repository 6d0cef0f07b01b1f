"""What a round costs as hospitals grow: the real services, a Merkle job, and hospitals that train nothing.

`python -m benchmarks.scale --help` tells the options; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis
from concilia_kit import http
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.changes import Change, JobChange, job_stream
from concilia_kit.wire.jobs import JobSpec, Phase, Recording
from concilia_kit.wire.training import TRAIN_TASK
from eth_account import Account

from benchmarks import results, scale_hospitals, scale_services
from benchmarks.scale_services import NODE, Cost, Services

PORT = 9500
ELEMENTS = 256
"""Numbers in the model: a file of some 1.3 KB."""
_SIGN_INS = 20
_ALLOWED_SECONDS = 3600
_BASELINE = 100
"""Hospitals whose cost an update the others' is compared with."""
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Measured:
    """What one size of consortium came to."""

    hospitals: int
    rounds: int
    setup_seconds: float
    heartbeat: Cost
    sign_in: Cost
    token: Cost
    cost: Cost
    gas: int
    transactions: int

    def document(self) -> dict[str, Any]:
        """As it is written down: CPU in milliseconds an update, memory in MB (10^6 bytes) at its highest."""
        updates, servers = self.hospitals * self.rounds, self.cost.servers()
        return {
            "hospitals": self.hospitals,
            "rounds": self.rounds,
            "setup_seconds": round(self.setup_seconds, 1),
            "seconds_a_round": self.cost.seconds / self.rounds,
            "updates_a_second": updates / self.cost.seconds,
            "cpu_ms_an_update": {part: spent * 1000 / updates for part, spent in sorted(servers.items())},
            "cpu_ms_an_update_in_all": sum(servers.values()) * 1000 / updates,
            "node_cpu_ms_an_update": self.cost.cpu.get(NODE, 0.0) * 1000 / updates,
            "peak_mb": {part: size / 1e6 for part, size in sorted(self.cost.peak.items()) if part != NODE},
            "wire_kb_an_update": self.cost.wire / updates / 1000,
            "gas_a_round": self.gas / self.rounds,
            "transactions_a_round": self.transactions / self.rounds,
            "heartbeat_cpu_ms": sum(self.heartbeat.servers().values()) * 1000 / self.hospitals,
            "sign_in_cpu_ms": sum(self.sign_in.servers().values()) * 1000 / _SIGN_INS,
            "token_cpu_ms": sum(self.token.servers().values()) * 1000 / _SIGN_INS,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON and Markdown; 1 where something fails."""
    options = _options(arguments)
    rows: list[dict[str, Any]] = []
    try:
        for count in options.hospitals:
            rows.append(_measure(count, options.rounds if count <= options.once_above else 1, options).document())
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    except (RuntimeError, httpx.HTTPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    table = _table(rows, options.clients)
    print(table)
    path = results.write("scale", {"clients": options.clients, "rows": rows}, table, options.output)
    print(f"\nall numbers: {path}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Cost as hospitals grow.")
    parser.add_argument("--hospitals", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=3, help="rounds measured together")
    parser.add_argument("--once-above", type=int, default=1000, help="of more hospitals, one round is measured")
    parser.add_argument("--clients", type=int, default=100, help="hospitals at work at a time")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="numbers in the model")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--recording", choices=[each.value for each in Recording], default=Recording.MERKLE.value)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="keep logs and databases in this folder")
    options = parser.parse_args(arguments)
    if min(options.hospitals) < 1 or options.rounds < 1 or options.clients < 1:
        parser.error("hospitals, rounds and clients are 1 or more")
    return options


def _measure(count: int, rounds: int, options: argparse.Namespace) -> Measured:
    _say(f"{count} hospitals: starting")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    # Nobody's heart beats again during the measurement: what a beat costs is measured by itself.
    settings = {"CONCILIA_AGGREGATOR_NODE_SECONDS": "1000000"}
    try:
        with scale_services.running(folder / "stack", options.port, anvil=True, settings=settings) as services:
            hospitals = scale_hospitals.make(count, services.signing)
            _say(f"{count} hospitals: enrolling")
            services.enrol([each.address for each in hospitals])
            setup = time.monotonic() - began
            return asyncio.run(_rounds(services, hospitals, rounds, setup, options))
    finally:
        if options.keep:
            shutil.copytree(folder, options.keep / str(count), dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


async def _rounds(
    services: Services,
    hospitals: Sequence[scale_hospitals.Hospital],
    rounds: int,
    setup: float,
    options: argparse.Namespace,
) -> Measured:
    base = services.layout.directory / "base.safetensors"
    base.write_bytes(scale_hospitals.model(0, options.elements))
    initial = await asyncio.to_thread(services.admin.upload, base)
    opened = asyncio.Event()
    trained = 0

    def trace(_who: str, what: str) -> None:
        nonlocal trained
        if what == f"{TRAIN_TASK} taken":
            trained += 1
            if trained == len(hospitals) * (rounds - 1) + 1:
                opened.set()

    urls = {name: services.layout.url(name) for name in ("model", "chain", "aggregator")}
    async with scale_hospitals.Cohort(
        hospitals, urls, services.redis_url, options.elements, options.clients, trace
    ) as cohort:
        heartbeat = await services.cost(cohort.register())
        spec = JobSpec(
            name="scale",
            initial=initial,
            rounds=rounds + 1,
            quorum=len(hospitals),
            deadline_seconds=_ALLOWED_SECONDS,
            recording=Recording(options.recording),
        )
        job = (await asyncio.to_thread(services.admin.create_job, spec)).id
        _say(f"{len(hospitals)} hospitals: evaluating the initial model")
        await cohort.work(1)
        await _until(services, job, Phase.OPENING, Phase.TRAINING)
        strangers = [_stranger(services) for _ in range(_SIGN_INS)]
        sign_in = await services.cost(asyncio.to_thread(_take_tokens, strangers))
        token = await services.cost(asyncio.to_thread(_take_tokens, strangers))
        _say(f"{len(hospitals)} hospitals: {rounds} rounds")

        async def all_rounds() -> None:
            await asyncio.to_thread(services.admin.resume_job, job)
            working = asyncio.create_task(cohort.work(2 * rounds))
            ending = asyncio.create_task(opened.wait())
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(services.admin.pause_job, job)  # after the round that is open now
            await working
            await _until(services, job, Phase.OPENING)

        cost = await services.cost(all_rounds())
        told = await asyncio.to_thread(services.admin.transactions, job)
        sent = {each.transaction: each.gas for each in told}
        return Measured(len(hospitals), rounds, setup, heartbeat, sign_in, token, cost, sum(sent.values()), len(sent))


def _stranger(services: Services) -> http.WalletAuth:
    return http.WalletAuth(http.client(services.layout.url("auth")), Account.create(), Audience.CHAIN)


def _take_tokens(strangers: Sequence[http.WalletAuth]) -> None:
    """Each takes a token: whoever is not signed in signs in first, as a node does every few hours."""
    for each in strangers:
        each.token(fresh=True)


async def _until(services: Services, job: str, *phases: Phase) -> None:
    """Wait until a job has come to a phase, as its stream tells it. Raises `RuntimeError`."""
    deadline = time.monotonic() + _ALLOWED_SECONDS
    with redis.Redis.from_url(services.redis_url) as client:
        while time.monotonic() < deadline:
            for _, fields in client.xrevrange(job_stream(job), count=1000):
                if fields[b"name"].decode() == Change.JOB:
                    if JobChange.model_validate_json(fields[b"data"]).phase in phases:
                        return
                    break
            await asyncio.sleep(0.02)
    raise RuntimeError(f"the job does not come to {' or '.join(phases)}")


def _table(rows: Sequence[dict[str, Any]], clients: int) -> str:
    parts = sorted({part for row in rows for part in row["cpu_ms_an_update"]})
    reference = next((row for row in rows if row["hospitals"] == _BASELINE), None)
    lines = [
        f"{clients} hospitals at work at a time.",
        "",
        f"| hospitals | s a round | updates/s | CPU ms an update | to {_BASELINE} | gas a round | KB an update |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        spent = row["cpu_ms_an_update_in_all"]
        ratio = "" if reference is None else f"{spent / reference['cpu_ms_an_update_in_all']:.2f}"
        lines.append(
            f"| {row['hospitals']:,} | {row['seconds_a_round']:.2f} | {row['updates_a_second']:.1f} | {spent:.1f} "
            f"| {ratio} | {row['gas_a_round']:,.0f} | {row['wire_kb_an_update']:.1f} |"
        )
    for title, key, form in (
        ("CPU ms an update", "cpu_ms_an_update", "{:.2f}"),
        ("Memory at its highest, MB", "peak_mb", "{:.0f}"),
    ):
        lines += ["", f"| {title} | " + " | ".join(parts) + " |", "|---:|" + "---:|" * len(parts)]
        for row in rows:
            cells = [form.format(row[key].get(part, 0.0)) for part in parts]
            lines.append(f"| {row['hospitals']:,} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| hospitals | CPU ms a heartbeat | CPU ms a sign-in | CPU ms a token | s to start and enrol |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        costs = " | ".join(f"{row[key]:.1f}" for key in ("heartbeat_cpu_ms", "sign_in_cpu_ms", "token_cpu_ms"))
        lines.append(f"| {row['hospitals']:,} | {costs} | {row['setup_seconds']:.0f} |")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which stops what was started
    sys.exit(main())

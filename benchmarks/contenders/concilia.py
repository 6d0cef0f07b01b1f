"""Concilia with all its promises: updates signed, recorded on the in-process chain, hashed, screened and folded.

The whole stack as `make demo` starts it; the hospitals are `benchmarks.hospital`. A round is counted from its opening
to the next one's; as with the others, nobody evaluates between.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from concilia.client import Client
from concilia.connection import Connection, Endpoints
from concilia.stack.enrolment import enrol, make_keys, write_connection
from concilia.stack.layout import Layout
from concilia_kit import http
from concilia_kit.tensorfile import TensorFile, write
from concilia_kit.wire.jobs import JobSpec, JobView, Phase
from concilia_kit.wire.training import Architecture

from benchmarks.contenders import ContenderFailed, Run, seconds_of
from benchmarks.contenders.processes import Started, answers, free_ports, started
from benchmarks.meter import Meter
from benchmarks.peers import payload

PORTS = 7  # of the services
_SECONDS = 900.0


def run(clients: int, rounds: int, empty: bool, folder: Path) -> Run:
    """See `Contender`. One round more is asked for: its opening is the last one's end."""
    layout = Layout(folder, free_ports(PORTS))
    (folder / "keys").mkdir(mode=0o700)
    (folder / "redis").mkdir()
    addresses = make_keys(layout, clients)
    write_connection(layout)
    initial = folder / "initial.safetensors"
    digest = write(initial, dict(payload.tensors(empty=empty)))
    with started(folder) as processes, Client(Connection(Endpoints.read(layout.connection_file))) as admin:
        parts: dict[int, str] = {}
        stack = layout.processes(addresses["admin"], folder, [], 1)
        for process in stack:
            parts[processes.start(process.name, process.command, process.environment)] = process.name
        urls = [process.ready_url for process in stack if process.ready_url]
        processes.wait_for(lambda: all(map(answers, urls)), 240)
        enrol(admin, addresses)
        for at in range(clients):
            hospital = (sys.executable, "-m", "benchmarks.hospital", folder, str(at), str(layout.port))
            processes.start(f"node-{at}", hospital)
        processes.wait_for(lambda: len(admin.nodes()) == clients, 120)
        _store(layout, digest, initial)
        with Meter(lambda: parts) as meter:
            job = _train(admin, processes, digest, clients, rounds + 1)
        _check(layout, admin, job, initial, clients, rounds + 1)
    began = [opened.timestamp() for each in job.rounds if (opened := each.opened_at) is not None]
    return Run(seconds_of(began), meter.between(began[1], began[-1]))


def _train(admin: Client, processes: Started, digest: str, clients: int, rounds: int) -> JobView:
    spec = JobSpec(
        name="benchmark",
        architecture=Architecture.RESNET50,
        initial=digest,
        rounds=rounds,
        quorum=clients,
        evaluate_every=rounds,  # nobody else evaluates
    )
    job = admin.create_job(spec)
    deadline = time.monotonic() + _SECONDS
    while job.phase not in {Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.PUBLISHING}:
        if time.monotonic() > deadline:
            raise ContenderFailed(f"the job is {job.phase} after {_SECONDS:.0f} s: {job.detail}")
        processes.wait_for(lambda: True, 1)  # that nothing died
        time.sleep(1.0)
        job = admin.job(job.id)
    if job.phase not in {Phase.FINISHED, Phase.PUBLISHING}:
        raise ContenderFailed(f"the job {job.phase}: {job.detail}")
    return job


def _check(layout: Layout, admin: Client, job: JobView, initial: Path, clients: int, rounds: int) -> None:
    """See that every update is on the ledger and counted, and that the model is what it must be."""
    for each in admin.ledger_job(job.id).rounds:
        if len(each.accepted()) != clients:
            raise ContenderFailed(f"round {each.round} has {len(each.accepted())} accepted updates")
    digest = job.rounds[-1].model or ""
    first = TensorFile.open(initial)
    last = TensorFile.open(layout.artifacts / digest[:2] / digest)
    name = next(iter(first))
    moved = float(last.flat(name)[0]) - float(first.flat(name)[0])
    if abs(moved - rounds * float(payload.STEP)) > 1e-4:
        raise ContenderFailed(f"the model moved by {moved}, not by {rounds} steps")


def _store(layout: Layout, digest: str, initial: Path) -> None:
    connection = Connection(Endpoints.read(layout.connection_file))
    http.call(connection.model, "PUT", f"/v1/artifacts/{digest}", content=initial.read_bytes())
    connection.close()

"""The floor: plain FastAPI with streamed bodies, SHA-256 and a mean by blocks, and no promise kept.

`plain` has clients that stream with httpx, `lean` ones that use sendfile and one buffer.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from benchmarks.contenders import Run, seconds_of
from benchmarks.contenders.processes import PEERS, answers, started
from benchmarks.meter import Meter, families
from benchmarks.nodes import free_port
from benchmarks.peers import payload

_SECONDS = 600.0


def _run(clients: int, rounds: int, empty: bool, folder: Path, *, flags: tuple[str, ...]) -> Run:
    with (folder / "model").open("wb") as file:
        for _, values in payload.tensors(empty=empty):
            file.write(values.data)
    port = free_port()
    url, report = f"http://127.0.0.1:{port}", folder / "rounds.json"
    with started(folder) as processes:
        server = processes.start(
            "server", (sys.executable, PEERS / "floor_server.py", folder, str(port), str(clients), str(rounds))
        )
        processes.wait_for(lambda: answers(f"{url}/rounds/0"), 60)
        with Meter(lambda: families([(server, "server")])) as meter:
            for at in range(clients):
                processes.start(
                    f"client-{at}",
                    (sys.executable, PEERS / "floor_client.py", url, str(at), str(rounds), folder, *flags),
                )
            ending = {f"client-{at}" for at in range(clients)}
            processes.wait_for(report.exists, _SECONDS, ending=ending)
        began: list[float] = json.loads(report.read_text())
        return Run(seconds_of(began), meter.between(began[1], began[-1]))


plain = partial(_run, flags=())
lean = partial(_run, flags=("--lean",))

"""NVFlare: a POC, its own way of running real processes on one machine, with its own FedAvg over one array."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil

from benchmarks.contenders import ContenderFailed, Run, seconds_of
from benchmarks.contenders.processes import PEERS, environment, started
from benchmarks.meter import Meter
from benchmarks.peers import payload

_SECONDS = 1800.0


def run(clients: int, rounds: int, empty: bool, folder: Path) -> Run:
    """See `Contender`. One round more is asked for: its beginning is the last one's end."""
    commands = environment("nvflare")
    model, reports, poc = folder / "model.npy", folder / "reports", folder / "poc"
    reports.mkdir()
    np.save(model, np.concatenate([values.ravel() for _, values in payload.tensors(empty=empty)]))
    surroundings = {
        "NVFLARE_POC_WORKSPACE": str(poc),
        "HOME": str(folder),
        "PATH": f"{commands}:/usr/local/bin:/usr/bin:/bin",
    }
    with started(folder) as processes:
        job = (commands / "python", PEERS / "nvflare" / "job.py", str(clients), str(rounds + 1), model, reports)
        processes.start("job", job, surroundings)
        with Meter(lambda: _servers(f"{poc}/")) as meter:
            processes.wait_for(lambda: processes.processes["job"].poll() is not None, _SECONDS, ending={"job"})
    found = [json.loads(path.read_text()) for path in sorted(reports.glob("*.json"))]
    if len(found) != clients or any(len(each["began"]) != rounds + 1 for each in found):
        raise ContenderFailed(f"not every client had every round: {folder}")
    if abs(found[0]["moved"] - (rounds + 1) * float(payload.STEP)) > 1e-4:
        raise ContenderFailed(f"the model moved by {found[0]['moved']}, not by {rounds + 1} steps")
    began = [min(moments) for moments in zip(*(each["began"] for each in found), strict=True)]
    return Run(seconds_of(began), meter.between(began[1], began[-1]))


def _servers(workspace: str) -> dict[int, str]:
    """The server's processes: its parent and the one that runs the job."""
    found: dict[int, str] = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.startswith(workspace) and "/server" in word for word in words):
            found[process.pid] = "server"
    return found

"""Flower: SuperLink, SuperNodes and `flwr run` as its documentation has them, with its own FedAvg."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from benchmarks.contenders import ContenderFailed, Run, seconds_of
from benchmarks.contenders.processes import PEERS, environment, started
from benchmarks.meter import Meter, families
from benchmarks.nodes import free_port
from benchmarks.peers import payload

_SECONDS = 1800.0


def _run(clients: int, rounds: int, empty: bool, folder: Path, *, tensors: int) -> Run:
    commands = environment("flower")
    home, app, report = folder / "home", folder / "app", folder / "report.json"
    home.mkdir()
    shutil.copytree(PEERS / "flower", app)
    shapes = [list(shape) for shape in payload.shapes().values()] if not empty else [[16]]
    (folder / "shapes.json").write_text(json.dumps(shapes))
    port = free_port()
    address = f"127.0.0.1:{port}"
    settings = f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(settings)
    surroundings = {"FLWR_HOME": str(home), "PATH": f"{commands}:/usr/local/bin:/usr/bin:/bin"}
    with started(folder) as processes:
        link = processes.start(
            "superlink",
            (
                *(commands / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)),
                "--disable-runtime-dependency-installation",
            ),
            surroundings,
        )
        processes.wait_for(lambda: b"Uvicorn running" in processes.log("superlink").read_bytes(), 120)
        for at in range(clients):
            node = ("--insecure", "--superlink", address, "--port", str(free_port()))
            processes.start(f"supernode-{at}", (commands / "flower-supernode", *node), surroundings)
        config = f"clients={clients} rounds={rounds} tensors={tensors} report='{report}'"
        with Meter(lambda: families([(link, "superlink")])) as meter:
            run = (commands / "flwr", "run", app, "bench", "--stream", "--run-config", config)
            processes.start("run", run, surroundings)
            processes.wait_for(report.exists, _SECONDS, ending={"run"})
            processes.wait_for(lambda: processes.processes["run"].poll() is not None, 120, ending={"run"})
    found = json.loads(report.read_text())
    if abs(found["moved"] - rounds * float(payload.STEP)) > 1e-4:
        raise ContenderFailed(f"the model moved by {found['moved']}, not by {rounds} steps")
    return Run(seconds_of(found["began"]), meter.between(found["began"][1], found["began"][-1]))


as_it_is = partial(_run, tensors=161)
packed = partial(_run, tensors=4)

"""A deployment of its own for the tests: real images, Redis, Postgres and Ganache, reached through the front door."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from concilia.client import Client
from concilia.commands.jobs import ENDED, initial_weights
from concilia.connection import Connection, Endpoints
from concilia_kit.problems import Problem
from concilia_kit.wire.jobs import JobSpec, JobView
from concilia_kit.wire.training import Architecture, Balance, Evaluation, LocalTraining

ROOT = Path(__file__).parents[2]
PROJECT = "concilia-test"
NODE_SECONDS = 35  # more than two heartbeats


@dataclass(frozen=True)
class Stack:
    """The deployment under test."""

    environment: dict[str, str]
    folder: Path
    clients: contextlib.ExitStack

    def run(self, *command: str, check: bool = True, timeout: float = 900) -> str:
        """Run a command in the repository with the deployment's environment; its standard output."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def fails(self, *command: str) -> str:
        """Run a command that must fail; its standard error."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 2, done.stdout + done.stderr
        return done.stderr

    def compose(self, *arguments: str, check: bool = True) -> str:
        """docker compose with the demo profile."""
        return self.run("docker", "compose", "--profile", "demo", *arguments, check=check)

    def up(self, nodes: int = 4) -> None:
        """Start everything and wait a minute at most until all of it is healthy."""
        self.compose("up", "-d", "--wait", "--wait-timeout", "60", "--scale", f"client-node={nodes}")

    def scale(self, nodes: int) -> None:
        """Change the number of client-nodes and nothing else."""
        self.compose("up", "-d", "--no-recreate", "--no-deps", "--scale", f"client-node={nodes}", "client-node")

    def client(self) -> Client:
        """The administrator's client, through the front door."""
        client = Client(Connection(Endpoints.read(self.folder / "secrets" / "concilia.json")))
        return self.clients.enter_context(client)

    @property
    def url(self) -> str:
        """The front door's."""
        return f"https://{self.environment['CONCILIA_PUBLIC_HOST']}"

    @property
    def trust(self) -> ssl.SSLContext:
        """In the deployment's own authority alone."""
        return ssl.create_default_context(cafile=self.folder / "secrets" / "ca.pem")

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command inside a service's first container."""
        return self.compose("exec", "-T", service, *command, check=check)

    def create(self, to: Client, **changes: Any) -> JobView:
        """Create a small job."""
        initial = initial_weights(to, Architecture.MOBILENET_V2, "random", 0)
        fields: dict[str, Any] = {
            "name": "test",
            "architecture": Architecture.MOBILENET_V2,
            "initial": initial.digest,
            "rounds": 2,
            "quorum": 4,
            "deadline_seconds": 120,
            "local": LocalTraining(
                epochs=1,
                batch_size=16,
                learning_rate=0.01,
                image_size=32,
                max_images=32,
                balance=Balance.SAMPLING,
            ),
            "evaluation": Evaluation(max_images=16),
        }
        return to.create_job(JobSpec.model_validate({**fields, **changes}))


def wait_for(to: Client, job: str, condition: Callable[[JobView], bool], seconds: float) -> JobView:
    """A job once a condition holds; fails when it ended before, or in time did not hold. A deployment that is coming
    back, and says so, is waited for like the rest."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            view = to.job(job)
        except Problem as problem:
            if problem.problem_status not in {502, 503, 504} or time.monotonic() > deadline:
                raise
            continue
        if condition(view):
            return view
        assert view.phase not in ENDED, f"the job {view.phase}: {view.detail}"
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {view.phase} {view.round} {view.detail}"
        time.sleep(0.5)


def ended(view: JobView) -> bool:
    """The job has ended."""
    return view.phase in ENDED


def closed(view: JobView) -> int:
    """Rounds that were closed."""
    return sum(item.closed_at is not None for item in view.rounds)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Images built, secrets made, pictures drawn, everything up and healthy; gone afterwards."""
    folder = tmp_path_factory.mktemp("compose")
    (folder / "secrets").mkdir()
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")},
        "COMPOSE_PROJECT_NAME": PROJECT,
        "CONCILIA_PORT": str(port),
        "CONCILIA_PUBLIC_HOST": f"127.0.0.1:{port}",
        "CONCILIA_SECRETS": str(folder / "secrets"),
        "CONCILIA_DATA": str(folder / "data"),
        "CONCILIA_NODE_SECONDS": str(NODE_SECONDS),
        "CONCILIA_NODES": "4",
    }
    clients = contextlib.ExitStack()
    made = Stack(environment, folder, clients)
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.fail("no Docker engine answers: start one, these tests need it")
    made.run(sys.executable, "-m", "concilia_client_node.drawn", str(folder / "data"), "--images", "800", "--seed", "0")
    made.compose("down", "-v", "--remove-orphans", check=False)
    made.run("docker", "compose", "--profile", "demo", "build", timeout=1800)
    made.run("deploy/make-secrets")
    try:
        made.up()
        yield made
    finally:
        clients.close()
        print(made.compose("logs", "--no-color", "--tail", "40", check=False)[-20000:])
        made.compose("down", "-v", "--remove-orphans", check=False)

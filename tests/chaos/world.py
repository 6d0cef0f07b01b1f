"""A consortium of real processes, its lines and its jobs, and what is true of a job afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis
from concilia.client import Client
from concilia.connection import Connection, Endpoints
from concilia.stack.enrolment import enrol, make_keys, write_connection
from concilia.stack.layout import SERVICES, Layout, Process, Site
from concilia_client_node import drawn
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import JobSpec, JobView, Phase
from concilia_kit.wire.models import InitialModelRequest, Weights
from concilia_kit.wire.training import Architecture, Evaluation, LocalTraining

from .line import Line
from .processes import CHAIN_ID, Spec, Supervised, answers, fund, ganache, listens, postgres, postgres_folder
from .steps import CENTRE, Moment, Step, Trigger, node_calls

QUEUED, ASKING = "node-0", "node-1"
"""A hospital that is told by the broker, and one that asks over HTTPS. The third is told by the broker, unwatched."""
JOB_SECONDS = 150.0
PORTS = 60
DATABASES = ("model", "aggregator", "chain")
_START_SECONDS = 120.0
_ENDED = frozenset({Phase.FINISHED, Phase.FAILED, Phase.STOPPED})
CALLS = (*node_calls("a hospital on the queue", "queued"), *node_calls("a hospital on HTTPS", "asking"), *CENTRE)


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `recovery` in seconds: the longest time, once the killed process was back and until the job
    ended, in which none of its watched calls was answered well."""

    digest: str
    seconds: float
    recovery: float
    faults: tuple[str, ...]
    restarts: tuple[str, ...]


class World:
    """The consortium. `processes` by name, in the order in which they were started."""

    def __init__(self, folder: Path, port: int, hospitals: int = 3, data: Path | None = None) -> None:
        self._folder = folder
        self.hospitals = hospitals
        self._data = data
        self._layout = Layout(folder, port)
        self._lines_from = port + 40
        self.trigger = Trigger(CALLS)
        self.lines: dict[str, Line] = {}
        self.processes: dict[str, Supervised] = {}
        self.database = "Postgres" if postgres_folder() else "SQLite"
        self._number = 0
        self._admin = contextlib.ExitStack()
        self._spare = port + PORTS
        # Another user's: no folder of a test's can be.
        self._beside = tempfile.TemporaryDirectory(prefix="chaos-")

    def start(self) -> None:
        for name in ("keys", "redis", "logs"):
            (self._folder / name).mkdir(mode=0o700)
        addresses = make_keys(self._layout, self.hospitals)
        write_connection(self._layout)
        data = self._data
        if data is None:
            data = self._folder / "drawn"
            drawn.write_drawn(data, images=160, seed=5)
        sites = [Site(f"hospital {at}", f"iid:{at}/{self.hospitals}") for at in range(self.hospitals)]
        stack = {each.name: each for each in self._layout.processes(addresses["admin"], data, sites, 1)}
        evm = self._layout.port + 30
        self._run([ganache(self._folder, evm)])
        fund(f"http://127.0.0.1:{evm}", addresses["chain"])
        self._run([_spec(stack["redis"], ready=listens(self._layout.port_of("redis")))])
        self._draw_lines(evm)
        databases = self._databases()
        self._run([self._chain(stack["chain"], databases)])
        self._run([_spec(stack["auth"]), self._with(stack["model"], databases)])
        self._run(self._aggregators(stack["aggregator"], databases))
        self.admin = self._admin.enter_context(Client(Connection(Endpoints.read(self._layout.connection_file))))
        enrol(self.admin, addresses)
        self._run([self._node(stack[f"node-{at}"], at) for at in range(self.hospitals)])
        _until(lambda: len(self.admin.nodes()) == self.hospitals, 60, "all nodes register")
        self.initial = self.admin.initial_model(
            InitialModelRequest(architecture=Architecture.MOBILENET_V2, seed=1, weights=Weights.RANDOM)
        ).digest

    def stop(self) -> None:
        self._admin.close()
        for each in reversed(self.processes.values()):
            each.stop()
        for line in self.lines.values():
            line.down()
        self._beside.cleanup()

    def train(
        self, step: Step | None, victim: str | None, *, rounds: int = 2, strike: Callable[[], None] | None = None
    ) -> Outcome:
        """A job; at a step, if one is given, a process is killed, or whatever `strike` does happens."""
        self._number += 1
        starts = {name: each.starts for name, each in self.processes.items()}
        killed = None if victim is None else self.processes[victim]
        self.trigger.arm(step, strike or (killed.kill if killed else lambda: None))
        began = time.monotonic()
        job = self._create(rounds)
        job = self._wait(job, killed, began)
        seconds = time.monotonic() - began
        faults = [] if step is None or self.trigger.struck_at is not None else ["the step never came"]
        faults += self._untrue(job, rounds)
        others = [
            f"{name} x{each.starts - starts[name]}"
            for name, each in self.processes.items()
            if each.starts - starts[name] > (name == victim)
        ]
        recovery = self._standstill(killed, began + seconds)
        return Outcome(job.model or "", seconds, recovery, tuple(faults), tuple(others))

    def settle(self) -> None:
        """Wait until everybody serves again and is heard of; and take away what was made before: the same seeds give
        the same bytes, and what is there already is not sent."""
        for path in [*self.stored(), *self.put_aside(), *self._folder.glob("node-*/bases/*.safetensors")]:
            path.unlink()
        for each in self.processes.values():
            each.await_ready(_START_SECONDS)
        _until(lambda: all(node.seen_seconds_ago < 20 for node in self.admin.nodes()), 60, "all nodes are heard of")

    def port_of(self, service: str) -> int:
        return self._layout.port_of(service)

    def url_of(self, service: str) -> str:
        return self._layout.url(service)

    def spare_port(self) -> int:
        """A port that nobody of the consortium has."""
        self._spare -= 1
        return self._spare

    def pid_of(self, process: str) -> int:
        return self.processes[process].pid

    def artifact(self, digest: str) -> Path:
        return self._layout.artifacts / digest[:2] / digest

    def stored(self) -> list[Path]:
        """The files of all artifacts but the initial model."""
        return [path for path in self._layout.artifacts.glob("[0-9a-f][0-9a-f]/*") if path.name != self.initial]

    def changed(self) -> list[Path]:
        """Those that have other bytes than they are named after."""
        return [path for path in self.stored() if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]

    def put_aside(self) -> list[Path]:
        """Files that the store found changed."""
        return list(self._layout.artifacts.glob("quarantine/*"))

    @property
    def keys(self) -> Path:
        return self._folder / "keys"

    def steps(self) -> list[Step]:
        return [Step(call, moment) for call in CALLS for moment in Moment]

    # -------------------------------------------------------------------------------------------------- what it is of

    def _draw_lines(self, evm: int) -> None:
        ends = {f"{who}-{name}": self._layout.port_of(name) for who in ("queued", "asking") for name in SERVICES[1:]}
        ends |= {"centre-chain": self._layout.port_of("chain"), "centre-model": self._layout.port_of("model")}
        ends["relay-evm"] = evm
        for at, (name, to) in enumerate(ends.items()):
            self.lines[name] = Line(name, self._lines_from + at, to, watcher=self.trigger)

    def _databases(self) -> dict[str, str]:
        programs = postgres_folder()
        if programs is None:
            return {}
        port = self._layout.port + 31
        self._run([postgres(programs, Path(self._beside.name), port, DATABASES)])
        return {name: f"postgresql+psycopg://concilia@127.0.0.1:{port}/{name}" for name in DATABASES}

    def _chain(self, process: Process, databases: dict[str, str]) -> Spec:
        changes = {"RPC_URL": self.lines["relay-evm"].url, "CHAIN_ID": str(CHAIN_ID)}
        return self._with(process, databases, **changes)

    def _aggregators(self, process: Process, databases: dict[str, str]) -> list[Spec]:
        """As the deployment has them: one process for the interface, one that moves jobs on."""
        changes = {"CHAIN_URL": self.lines["centre-chain"].url, "MODEL_URL": self.lines["centre-model"].url}
        python = process.command[0]
        made = []
        for part, port in (("api", self._layout.port_of("aggregator")), ("worker", self._layout.port + 32)):
            one = replace(
                process,
                name="aggregator" if part == "api" else "aggregator-worker",
                command=(python, "-m", "concilia_aggregator", part),
                ready_url=f"http://127.0.0.1:{port}/healthz",
            )
            spec = self._with(one, databases, PORT=str(port), DIRECTORY=str(self._folder / one.name), **changes)
            made.append(spec)
        return made

    def _node(self, process: Process, at: int) -> Spec:
        who = {QUEUED: "queued", ASKING: "asking"}.get(process.name)
        changes = {f"{name.upper()}_URL": self.lines[f"{who}-{name}"].url for name in SERVICES[1:]} if who else {}
        if process.name == ASKING:
            changes["BROKER_URL"] = ""
        return self._with(process, {}, **changes)

    def _with(self, process: Process, databases: dict[str, str], **changes: str) -> Spec:
        service = process.name.partition("-")[0]
        prefix = f"CONCILIA_{service.upper()}_"
        url = databases.get(service)
        found = {**changes, **({"DATABASE_URL": url} if url else {})}
        return _spec(process, {f"{prefix}{name}": value for name, value in found.items()})

    def _run(self, specs: Sequence[Spec]) -> None:
        for spec in specs:
            self.processes[spec.name] = Supervised(spec, self._folder / "logs")
            self.processes[spec.name].start()
        for spec in specs:
            self.processes[spec.name].await_ready(_START_SECONDS)

    # ------------------------------------------------------------------------------------------------------------ jobs

    def _create(self, rounds: int) -> JobView:
        return self.admin.create_job(
            JobSpec(
                name=f"chaos {self._number}",
                architecture=Architecture.MOBILENET_V2,
                initial=self.initial,
                rounds=rounds,
                quorum=self.hospitals,
                deadline_seconds=int(JOB_SECONDS),
                seed=11,
                evaluate_every=rounds,
                local=LocalTraining(epochs=1, batch_size=8, image_size=32, max_images=16),
                evaluation=Evaluation(max_images=16),
            )
        )

    def _wait(self, job: JobView, killed: Supervised | None, began: float) -> JobView:
        while job.phase not in _ENDED and time.monotonic() - began < JOB_SECONDS:
            if killed is not None and killed.killed_at > began and not killed.back_at and killed.ready():
                killed.back_at = time.monotonic()
            time.sleep(0.1)
            with contextlib.suppress(Problem):
                job = self.admin.job(job.id)
        return job

    def _standstill(self, killed: Supervised | None, ended: float) -> float:
        if killed is None or self.trigger.struck_at is None or not killed.back_at:
            return 0.0
        moments = sorted({killed.back_at, ended, *(seen.at for seen in self.trigger.seen)})
        after = [at for at in moments if killed.back_at <= at <= ended]
        return max((later - at for at, later in pairwise(after)), default=0.0)

    def _untrue(self, job: JobView, rounds: int) -> Iterator[str]:
        """What is not as it should be: of a job that ended well each hospital counts once in each of its rounds."""
        if job.phase is not Phase.FINISHED:
            yield f"the job is {job.phase}: {job.detail}"
        found: dict[int, Any] = {}
        for _ in range(50):
            with contextlib.suppress(Problem):
                found = {each.round: each for each in self.admin.ledger_job(job.id).rounds}
                break
            time.sleep(0.2)
        if sorted(found) != list(range(1, rounds + 1)):
            yield f"the ledger has the rounds {sorted(found)}"
        for number, each in found.items():
            if each.status is not RoundStatus.CLOSED:
                yield f"round {number} is {each.status} on the ledger"
            counted = Counter(item.update.hospital for item in each.accepted())
            if len(counted) != self.hospitals:
                yield f"round {number} counts {len(counted)} hospitals: {self.hospitals - len(counted)} lost"
            if any(times > 1 for times in counted.values()):
                yield f"round {number} counts a hospital twice"


def _spec(process: Process, changes: dict[str, str] | None = None, ready: Callable[[], bool] | None = None) -> Spec:
    return Spec(
        process.name,
        process.command,
        {**process.environment, **(changes or {})},
        ready or answers(process.ready_url or ""),
    )


def _until(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Problem, redis.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@contextlib.contextmanager
def running(folder: Path, port: int, hospitals: int = 3, data: Path | None = None) -> Iterator[World]:
    """The consortium on `PORTS` ports, for as long as the context lasts; with drawn pictures where no data is given."""
    world = World(folder, port, hospitals, data)
    try:
        world.start()
        yield world
    finally:
        world.stop()

"""The processes of a consortium, each of which may be killed at any moment and is started again as Compose would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
CHAIN_ID = 1337
RESTART_SECONDS = 0.3
"""From a process's end to its next start."""
_SPREAD = "usr/lib/postgresql/*/bin"


@dataclass(frozen=True)
class Spec:
    """How a process is started, and how one sees that it serves."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    user: str | None = None


@dataclass
class Supervised:
    """A process that is started whenever it is not there."""

    spec: Spec
    folder: Path
    starts: int = 0
    killed_at: float = 0.0
    back_at: float = 0.0
    ended: list[int] = field(default_factory=list)
    """Exit codes of those that ended without being killed here."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._held = threading.Event()

    def start(self) -> None:
        """Start it, and again whenever it ended, until `stop`."""
        self._wanted = True
        self._launch()
        threading.Thread(target=self._watch, name=f"supervisor {self.spec.name}", daemon=True).start()

    def await_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.ready():
            assert time.monotonic() < deadline, f"{self.spec.name} is not ready after {seconds:g} s: {self.tail()}"
            time.sleep(0.05)
        self.back_at = time.monotonic()

    def ready(self) -> bool:
        try:
            return self.spec.ready()
        except (OSError, httpx.HTTPError, ValueError):
            return False

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does; all of its family at once."""
        with self._lock:
            process = self._process
            assert process is not None
            self.killed_at = time.monotonic()
            self.back_at = 0.0
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def vanish(self) -> None:
        """Be killed, and not be there until `return_`."""
        self._held.set()
        self.kill()

    def return_(self) -> None:
        self._held.clear()

    def stop(self) -> None:
        self._held.clear()
        with self._lock:
            self._wanted = False
            if self._process is not None and self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def tail(self) -> str:
        path = self.folder / f"{self.spec.name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:])

    def _watch(self) -> None:
        while True:
            process = self._process
            assert process is not None
            code = process.wait()
            if not self._wanted:
                return
            if code != -signal.SIGKILL:
                self.ended.append(code)
            time.sleep(RESTART_SECONDS)
            while self._held.is_set():
                time.sleep(RESTART_SECONDS)
            with self._lock:
                if not self._wanted:
                    return
                self._launch()

    def _launch(self) -> None:
        self.starts += 1
        with (self.folder / f"{self.spec.name}.log").open("ab") as log:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                list(self.spec.command),
                env={**_inherited(), **self.spec.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.spec.user,
            )


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")}


def answers(url: str) -> Callable[[], bool]:
    return lambda: httpx.get(url, timeout=2).status_code == 200


def listens(port: int) -> Callable[[], bool]:
    def look() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    return look


# ------------------------------------------------------------------------------------------------------------ Postgres


def postgres_folder() -> Path | None:
    """Where a Postgres of this machine has its programs, if there is one."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/").glob(_SPREAD), reverse=True)
    return next((each for each in folders if (each / "postgres").exists() and (each / "createdb").exists()), None)


def postgres(programs: Path, folder: Path, port: int, databases: Sequence[str]) -> Spec:
    """A server with these databases in an empty folder, durable as it is by default."""
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    run: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([programs / "initdb", "-D", data, "-U", "concilia", "-A", "trust", "--no-sync"], user=user, **run)
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
    asking = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]

    def takes() -> bool:
        return subprocess.run(asking, check=False, cwd="/").returncode == 0

    made = subprocess.Popen(command, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        _await(takes, 30)
        for name in databases:
            to = ["-h", "127.0.0.1", "-p", str(port), "-U", "concilia"]
            subprocess.run([programs / "createdb", *to, name], **run)
    finally:
        made.terminate()
        made.wait()
    return Spec("postgres", command, {}, takes, user)


# ------------------------------------------------------------------------------------------------------------- Ganache


def ganache(folder: Path, port: int) -> Spec:
    """The development chain as the deployment has it: every block in a database on the disk."""
    program = ROOT / "benchmarks" / "node_modules" / ".bin" / "ganache"
    assert program.exists(), "no Ganache: run 'make chaos', which brings it"
    command = [
        *(str(program), "--chain.chainId", str(CHAIN_ID), "--chain.networkId", str(CHAIN_ID)),
        *("--chain.hardfork", "shanghai", "--wallet.deterministic", "--logging.quiet"),
        *("--database.dbPath", str(folder / "ganache"), "--server.host", "127.0.0.1", "--server.port", str(port)),
    ]
    url = f"http://127.0.0.1:{port}"
    return Spec("ganache", command, {}, lambda: bool(rpc(url, "eth_chainId")))


def rpc(url: str, method: str, *parameters: Any) -> Any:
    answer = httpx.post(url, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}, timeout=10)
    document = json.loads(answer.content)
    if "error" in document:
        raise ValueError(document["error"])
    return document["result"]


def fund(url: str, address: str) -> None:
    """Give a relay's address what it pays for gas with."""
    (rich, *_) = rpc(url, "eth_accounts")
    rpc(url, "eth_sendTransaction", {"from": rich, "to": address, "value": hex(100 * 10**18)})
    _await(lambda: int(rpc(url, "eth_getBalance", address, "latest"), 16) > 0, 20)


def _await(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (OSError, httpx.HTTPError):
            pass
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)

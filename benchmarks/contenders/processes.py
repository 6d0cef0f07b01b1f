"""Processes that are started for a run and gone after it, and environments of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from benchmarks.contenders import ContenderFailed
from benchmarks.nodes import free_port

PEERS = Path(__file__).parents[1] / "peers"
_STOP_SECONDS = 10.0


class Started:
    """The processes of a run, each logging to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> int:
        """Start one; its process id."""
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[name].pid

    def log(self, name: str) -> Path:
        """Where a process logs."""
        return self._folder / f"{name}.log"

    def wait_for(self, what: Callable[[], bool], seconds: float, *, ending: Collection[str] = ()) -> None:
        """Wait until something holds. Raises `ContenderFailed` where it does not, or a process dies; those of
        `ending` may end well."""
        deadline = time.monotonic() + seconds
        while not what():
            for name, process in self.processes.items():
                if process.poll() not in (None, 0) or (process.poll() == 0 and name not in ending):
                    raise ContenderFailed(f"{name} ended with {process.returncode}: {self.log(name)}")
            if time.monotonic() > deadline:
                raise ContenderFailed(f"nothing after {seconds:.0f} s: {self._folder}")
            time.sleep(0.05)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Started]:
    """Processes that are stopped at the end, with their children."""
    each = Started(folder)
    try:
        yield each
    finally:
        alive: list[psutil.Process] = []
        for process in reversed(each.processes.values()):
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(process.pid)
                alive += [*root.children(recursive=True), root]
                root.terminate()
        _, stubborn = psutil.wait_procs(alive, timeout=_STOP_SECONDS)
        for left in stubborn:
            with contextlib.suppress(psutil.Error):
                left.kill()
        for process in each.processes.values():
            process.wait()


def answers(url: str) -> bool:
    """Whether an address answers well."""
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


def free_ports(count: int) -> int:
    """The first of so many ports in a row on which nobody listens."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
                return first


def environment(name: str) -> Path:
    """The folder with the commands of an environment of its own, made from `peers/NAME.txt` where it is not there."""
    requirements = PEERS / f"{name}.txt"
    folder = Path("var/bench").resolve() / name
    marker = folder / "made-from.txt"
    if not marker.exists() or marker.read_text() != requirements.read_text():
        print(f"making an environment for {name}: {requirements.read_text().split()}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", requirements]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        marker.write_text(requirements.read_text())
    return folder / "bin"


if __name__ == "__main__":
    # NAME ARGUMENTS…: Python of an environment of its own.
    sys.exit(subprocess.run([environment(sys.argv[1]) / "python", *sys.argv[2:]], check=False).returncode)

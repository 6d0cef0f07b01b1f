"""Starts a stack's processes, sees that they come up, and stops all of them whatever happens.

Process ids lie in the stack's folder, so that a stack that was kept can be found and stopped by a later command.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psutil

from concilia.connection import UsageError
from concilia.stack.layout import Layout, Process

STOP_SECONDS = 10.0


class StartFailed(Exception):
    """A process did not come up; the message holds the end of its log."""


class Supervisor:
    """The processes of one stack."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, processes: Sequence[Process]) -> None:
        """Start processes; each logs to a file of its own name. Raises `OSError`."""
        logs = self._layout.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for process in processes:
            with (logs / f"{process.name}.log").open("wb") as log:
                # A session of its own: Ctrl-C reaches the supervisor alone, which stops them in order.
                self._running[process.name] = subprocess.Popen(  # noqa: S603 - commands are ours
                    process.command,
                    env=_environment(process),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._write()

    def await_ready(self, processes: Sequence[Process], seconds: float, ready: Callable[[str], None]) -> None:
        """Wait until each process answers; `ready` is told each name. Raises `StartFailed`."""
        waiting = [process for process in processes if process.ready_url]
        deadline = time.monotonic() + seconds
        while waiting:
            self.check()
            for process in [each for each in waiting if _answers(each.ready_url or "")]:
                waiting.remove(process)
                ready(process.name)
            if waiting and time.monotonic() > deadline:
                raise StartFailed(
                    f"{waiting[0].name} did not answer within {seconds:.0f} s\n{self._tail(waiting[0].name)}"
                )
            time.sleep(0.1)

    def check(self) -> None:
        """See that nothing died. Raises `StartFailed`."""
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                raise StartFailed(f"{name} ended with exit code {code}\n{self._tail(name)}")

    def stop(self) -> None:
        """Stop everything, last started first; what does not stop in time is killed."""
        stop_processes([process.pid for process in self._running.values()])
        for process in self._running.values():
            process.wait()
        _pid_file(self._layout.directory).unlink(missing_ok=True)

    def _write(self) -> None:
        pids = {name: process.pid for name, process in self._running.items()}
        path = _pid_file(self._layout.directory)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(pids))
        partial.replace(path)

    def _tail(self, name: str) -> str:
        path = self._layout.directory / "logs" / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines()[-12:]
        return "\n".join([f"--- the end of {path}", *lines])


def running(directory: Path) -> dict[str, int]:
    """Processes of a stack that are alive, by name."""
    with contextlib.suppress(OSError, ValueError):
        pids: dict[str, int] = json.loads(_pid_file(directory).read_text())
        return {name: pid for name, pid in pids.items() if _is_ours(pid)}
    return {}


def stop_kept(directory: Path) -> int:
    """Stop a stack that was kept; returns how many processes there were."""
    found = running(directory)
    stop_processes(list(found.values()))
    _pid_file(directory).unlink(missing_ok=True)
    return len(found)


def stop_processes(pids: Sequence[int]) -> None:
    """Ask processes to end, last started first, and kill those that do not, with their children."""
    alive: list[psutil.Process] = []
    for pid in reversed(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            alive.append(process)
            process.terminate()
    _, stubborn = psutil.wait_procs(alive, timeout=STOP_SECONDS)
    for process in stubborn:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def require_free(ports: dict[int, str]) -> None:
    """See that nobody listens on the ports. Raises `UsageError` naming the first that is taken."""
    for port, name in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise UsageError(f"port {port} (for {name}) is taken; choose others with PORT=…") from error


def _environment(process: Process) -> dict[str, str]:
    # Settings of another stack in the caller's environment must not leak in.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CONCILIA_")}
    return {**inherited, **process.environment}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _is_ours(pid: int) -> bool:
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
    return any(word in command for word in ("concilia_", "concilia.stack.", "redis-server"))


def _pid_file(directory: Path) -> Path:
    return directory / "pids.json"

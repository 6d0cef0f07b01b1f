"""`python -m concilia_chain` as a process that can be killed, and started again as a supervisor does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .anvil_node import until

START_SECONDS = 60


class Gateway:
    """One service's process, or the next one on the same database after it was killed."""

    def __init__(self, port: int, directory: Path, environment: dict[str, str], name: str = "gateway") -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._environment = {**environment, "CONCILIA_CHAIN_PORT": str(port)}
        self._directory = directory
        self._name = name
        self._starts = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def twin(self, port: int, **environment: str) -> Gateway:
        """Another one, on the same database, with the same key and, but for those given, the same settings."""
        named = {f"CONCILIA_CHAIN_{name}": value for name, value in environment.items()}
        return Gateway(port, self._directory, {**self._environment, **named}, f"{self._name}-twin")

    def launch(self) -> None:
        """Start the process, and do not wait for it."""
        with self._lock:
            self._launch()

    def start(self) -> None:
        """Start the process unless it runs, again where it gives up, until it answers."""
        until(self._alive, START_SECONDS, lambda: f"the {self._name} answers; it said: {self.said()[-2000:]}")

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Start the process again whenever it ended, until the block ends."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.1):
                self._revive()

        thread = threading.Thread(target=watch, name="supervisor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does: nothing is finished, nothing is let go of."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()

    def exit_code(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def said(self) -> str:
        """What every process of this gateway wrote on standard error."""
        return "".join(path.read_text() for path in sorted(self._directory.glob(f"{self._name}-[0-9]*.err")))

    def _launch(self) -> None:
        self._starts += 1
        log = self._directory / f"{self._name}-{self._starts}"
        with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "concilia_chain"],
                env={**os.environ, **self._environment},
                stdout=out,
                stderr=err,
            )

    def _revive(self) -> None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._launch()

    def _alive(self) -> bool:
        self._revive()
        try:
            return httpx.get(self.url + "/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

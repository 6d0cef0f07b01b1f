"""Serving beside the main thread's work: it goes with the work, and the work goes with it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

BESIDE = """
import sys, time, urllib.request
from contextlib import asynccontextmanager
from concilia_kit import web
from concilia_kit.settings import ServiceSettings
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Audience

@asynccontextmanager
async def lifespan(app):
    if sys.argv[2] == "breaks":
        raise RuntimeError("serving breaks")
    yield
    print("stopped serving", flush=True)

app = web.application("Test", ready={}, verifier=TokenVerifier(Audience.MODEL, dict), lifespan=lifespan)
with web.running_beside(app, ServiceSettings(port=int(sys.argv[1]))):
    if sys.argv[2] == "breaks":
        time.sleep(60)
    for _ in range(200):
        try:
            print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/healthz", timeout=5).status, flush=True)
            break
        except OSError:
            time.sleep(0.05)
print("the work is done", flush=True)
"""


def run(port: int, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BESIDE, str(port), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_serving_ends_with_the_work(free_port: Callable[[], int]) -> None:
    done = run(free_port(), "goes")
    assert (done.returncode, done.stdout.split("\n")[:3]) == (0, ["200", "stopped serving", "the work is done"])


def test_where_serving_breaks_the_process_is_told_to_stop(free_port: Callable[[], int]) -> None:
    done = run(free_port(), "breaks")
    assert done.returncode == -signal.SIGTERM, done.stdout + done.stderr
    assert "the work is done" not in done.stdout

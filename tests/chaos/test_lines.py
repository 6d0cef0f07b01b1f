"""Large uploads over lines that are slow and break, go silent, or are down for a while.

`LINE_MB` and `LINE_RESET_SECONDS` make it as long as one likes; the line carries a megabyte a second.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from concilia_kit import http, keystore, transfer
from concilia_kit.tensorfile import write
from concilia_kit.wire.auth import Audience

from .line import Faults, Line
from .world import World

MEGABYTES = int(os.environ.get("LINE_MB", "12"))
RESET_SECONDS = float(os.environ.get("LINE_RESET_SECONDS", "4"))
GROWTH = 50e6
IN_FLIGHT = 2e6
"""Bytes that may be on their way when a line breaks: in the kernels' buffers and the line's own."""


@pytest.fixture
def line(world: World) -> Iterator[Line]:
    made = Line("test", world.spare_port(), world.port_of("model"))
    yield made
    made.down()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    values = np.random.default_rng(time.time_ns()).random(MEGABYTES * 250_000, np.float32)
    write(tmp_path / "update", {"values": values})
    return tmp_path / "update"


@pytest.fixture
def hospital(world: World, line: Line) -> Iterator[httpx.Client]:
    account = keystore.load(world.keys / "node-2.json", world.keys / "node-2.password")
    with (
        http.client(world.url_of("auth")) as auth,
        http.client(line.url, http.WalletAuth(auth, account, Audience.MODEL)) as made,
    ):
        yield made


def test_a_large_upload_over_a_line_that_breaks_sends_little_twice_and_grows_nothing(
    world: World, line: Line, file: Path, hospital: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    line.faults = Faults(bandwidth=1e6, latency=0.002, reset_every=RESET_SECONDS)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    service = psutil.Process(world.pid_of("model"))
    before, sizes = service.memory_info().rss, [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            sizes.append(service.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.monotonic()
    try:
        moved = transfer.upload(hospital, digest, file, patience=60)
    finally:
        done.set()
        watching.join()
    seconds, grown = time.monotonic() - began, max(sizes) - before
    with capsys.disabled():
        print(
            f"\n{moved.size / 1e6:.0f} MB in {seconds:.0f} s over a line of 1 MB/s that is reset every "
            f"{RESET_SECONDS:g} s: {moved.breaks} breaks, {moved.again / 1e6:.2f} MB sent again, the service grew by "
            f"{grown / 1e6:.0f} MB",
            flush=True,
        )
    assert moved.breaks >= 2
    assert moved.again < min(transfer.CHUNK, moved.breaks * IN_FLIGHT)
    assert grown < GROWTH
    assert hashlib.sha256(world.artifact(digest).read_bytes()).hexdigest() == digest


def test_a_line_that_goes_silent_and_down_for_a_while_costs_that_while(
    world: World, line: Line, file: Path, hospital: httpx.Client
) -> None:
    line.faults = Faults(bandwidth=3e6, slices=700)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def trouble() -> None:
        time.sleep(1)
        line.faults.silent = True
        time.sleep(2)
        line.faults.silent = False
        time.sleep(1)
        line.down()
        time.sleep(2)
        line.up()

    troubling = threading.Thread(target=trouble)
    troubling.start()
    try:
        moved = transfer.upload(hospital, digest, file, patience=60)
    finally:
        troubling.join()
    assert moved.breaks >= 1
    assert world.artifact(digest).stat().st_size == moved.size

"""What this machine can do at most, and so the least that a round can cost on it.

`python -m benchmarks.floor` prints the table; `measure` is for other benchmarks, which report their figures as ratios
to it, measured in the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

RESNET50 = 102_228_128
"""Bytes of ResNet50's 161 parameter tensors in float32."""

_CHUNK = 1 << 20
_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        with open(sys.argv[1], "rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(file.seek(0, 2)))
            self.end_headers()
            self.wfile.flush()
            file.seek(0)
            self.connection.sendfile(file)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Floor:
    """Bytes a second of what every round must do, each the best of several tries over the same `nbytes`.

    `copy`: memory to memory. `read`, `read_two`: one pass over a warm mapped file, by one thread and by two. `sha256`:
    one core. `http`: a body over the loopback interface from a file (sendfile) to a buffer, one connection; `http_cpu`
    is the core-seconds that a byte of it costs both ends together. `write`: to a file, until it is on the disk.
    `cold`: from a file that is not in memory.
    """

    nbytes: int
    cores: int
    copy: float
    read: float
    read_two: float
    sha256: float
    http: float
    http_cpu: float
    write: float
    cold: float

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a single pass over warm files, however many threads do best."""
        return max(self.read, self.read_two)

    def least(self, clients: int) -> float:
        """The least seconds that a round with so many clients on this one machine can take.

        With N clients and B bytes of model, N * B go down over HTTP and N * B come up; the N * B that came are hashed
        once and read once to be averaged, and the B of the new model are hashed. All of that is processors' work:

            (2 N B * http_cpu + (N + 1) B / sha256 + N B / bandwidth) / cores

        where an average is as fast as a read by all cores, and nothing else (signatures, JSON, the ledger, copying into
        the page cache) costs anything. Beside it the disk must take (N + 1) B, if what was accepted is to survive
        a power cut, and one connection moves no more than `http` a second down and up: B twice, one after the other.
        None of the three can be shorter than it is, and all may go on at once: the longest is the least.
        """
        n, b = clients, self.nbytes
        processors = (2 * n * b * self.http_cpu + (n + 1) * b / self.sha256) / self.cores + n * b / self.bandwidth
        return max(processors, (n + 1) * b / self.write, 2 * b / self.http)


def measure(nbytes: int = RESNET50, folder: Path | None = None, tries: int = 5) -> Floor:
    """Measure everything over so many bytes, in files below `folder` (the system's own place by default)."""
    with tempfile.TemporaryDirectory(prefix="floor-", dir=folder) as name:
        path = Path(name) / "bytes"
        data = np.random.default_rng(0).integers(0, 2**63, nbytes // 8, np.int64)
        write = _best(tries, nbytes, lambda: _written(path, data))
        cold = _best(tries, nbytes, lambda: _read_whole(path), before=lambda: _dropped(path))
        target = np.empty_like(data)
        target.fill(0)
        copy = _best(tries, nbytes, lambda: np.copyto(target, data))
        sha256 = _best(tries, nbytes, lambda: hashlib.sha256(data.data).digest())
        read = [_best(tries, nbytes, partial(_mapped, path, threads)) for threads in (1, 2)]
        http_rate, http_cpu = _http(path, nbytes, tries)
    return Floor(nbytes, len(os.sched_getaffinity(0)), copy, read[0], read[1], sha256, http_rate, http_cpu, write, cold)


def one_pass(paths: Sequence[Path], tries: int = 3) -> float:
    """Seconds of one pass over these very files, mapped one after another: the best of some, by one thread or by two.

    How fast a file's pages are had depends on how they came into the system's cache; so what is done with files is
    measured against the same files.
    """

    def read(threads: int) -> list[int]:
        return [_mapped(path, threads) for path in paths]

    return min(_seconds(partial(read, threads)) for threads in (1, 2) * tries)


def _seconds(what: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def _best(tries: int, nbytes: int, what: Callable[[], Any], before: Callable[[], Any] | None = None) -> float:
    seconds = float("inf")
    for _ in range(tries):
        if before is not None:
            before()
        seconds = min(seconds, _seconds(what))
    return nbytes / seconds


def _written(path: Path, data: np.ndarray[Any, Any]) -> None:
    view = data.data.cast("B")
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(view), _CHUNK):
            file.write(view[start : start + _CHUNK])
        os.fsync(file.fileno())


def _dropped(path: Path) -> None:
    """Out of the page cache: what is clean goes. Source: posix_fadvise(2)."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_whole(path: Path) -> None:
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _mapped(path: Path, threads: int) -> int:
    """Map the file anew, as an update is, and add all of it up."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = np.frombuffer(mapped, np.int64, len(mapped) // 8)
        total = _split(whole, threads)
        del whole
    return total


def _split(whole: np.ndarray[Any, Any], threads: int) -> int:
    if threads == 1:
        return int(np.add.reduce(whole))
    with ThreadPoolExecutor(threads) as pool:
        return sum(int(part) for part in pool.map(np.add.reduce, np.array_split(whole, threads)))


def _http(path: Path, nbytes: int, tries: int) -> tuple[float, float]:
    """Bytes a second, and core-seconds a byte of both ends."""
    with subprocess.Popen([sys.executable, "-c", _SERVER, str(path)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            client = http.client.HTTPConnection("127.0.0.1", int(server.stdout.readline()))
            _get(client)  # the first one opens the connection
            begin = time.thread_time() + _used(server.pid)
            rate = _best(tries, nbytes, lambda: _get(client))
            spent = time.thread_time() + _used(server.pid) - begin
            client.close()
        finally:
            server.terminate()
    return rate, spent / (tries * nbytes)


def _get(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/")
    answer, buffer = client.getresponse(), bytearray(_CHUNK)
    while answer.readinto(buffer):
        pass


def _used(pid: int) -> float:
    """CPU seconds of another process. Source: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(floor: Floor, clients: Sequence[int] = (2, 4, 8)) -> str:
    """What was measured, as Markdown."""
    rows = [
        ("memory copy", floor.copy),
        ("one pass over a warm mapped file, one thread", floor.read),
        ("the same, two threads", floor.read_two),
        ("SHA-256, one core", floor.sha256),
        ("HTTP body over loopback, one connection", floor.http),
        ("disk, written and synchronised", floor.write),
        ("disk, read cold", floor.cold),
    ]
    lines = [f"| {floor.nbytes / 1e6:.1f} MB | GB/s |", "|---|---:|"]
    lines += [f"| {name} | {rate / 1e9:.2f} |" for name, rate in rows]
    lines += ["", f"HTTP costs {floor.http_cpu * 1e9:.2f} core-seconds a GB, both ends together.", ""]
    lines += ["| clients | least seconds a round |", "|---:|---:|"]
    lines += [f"| {n} | {floor.least(n):.2f} |" for n in clients]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description="What this machine can do at most.")
    parser.add_argument("--megabytes", type=float, default=RESNET50 / 1e6, help="of a model; ResNet50's by default")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--tries", type=int, default=5, help="the best counts")
    options = parser.parse_args(arguments)
    if options.megabytes < 1 or options.tries < 1:
        parser.error("at least a megabyte, and once")
    floor = measure(int(options.megabytes * 1e6) // 8 * 8, options.folder, options.tries)
    print(table(floor))
    print("\n" + ", ".join(f"{key} {value}" for key, value in asdict(floor).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

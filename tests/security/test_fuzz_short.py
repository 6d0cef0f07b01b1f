"""The fuzzers' inputs, replayed and mutated from fixed seeds; and every fuzzer itself, for a few seconds.

`make fuzz` runs them for as long as one likes. `FUZZ_SECONDS` is for each, 3 here.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fuzz import checking, seeds

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "3"))
HAS_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64"
MUTATIONS = 40  # of each input


@pytest.mark.parametrize("name", checking.TARGETS)
def test_inputs_and_mutations_of_them(name: str) -> None:
    target = checking.load(name)
    for path in checking.corpus(name):
        checking.check(target, path.read_bytes())
        for seed in range(MUTATIONS):
            checking.check(target, checking.mutated(target, path.read_bytes(), seed))


@pytest.mark.parametrize("name", checking.TARGETS)
def test_inputs_reach_what_is_fuzzed(name: str) -> None:
    """Drawn inputs are accepted: a target that refused all of them would be fuzzed in vain."""
    target = checking.load(name)
    for path in checking.corpus(name):
        if not path.name.startswith("found-"):
            target.run(path.read_bytes())


@pytest.mark.parametrize("name", checking.TARGETS)
def test_inputs_are_drawn_and_small(name: str) -> None:
    made = {file for file, _ in seeds.SEEDS[name]()}
    there = {path.name: path.stat().st_size for path in checking.corpus(name)}
    assert made == {file for file in there if not file.startswith("found-")}
    assert max(there.values()) < 8192


@pytest.mark.parametrize("name", checking.TARGETS)
@pytest.mark.skipif(not HAS_WHEEL, reason="atheris has wheels for Linux on x86-64 alone")
def test_fuzzer(name: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        name,
        "--seconds",
        str(SECONDS),
        "--seed",
        "1",
        "--work",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    executed = next(line for line in done.stderr.splitlines() if "number_of_executed_units" in line)
    assert int(executed.split()[-1]) > 20


@pytest.mark.skipif(not HAS_WHEEL, reason="atheris has wheels for Linux on x86-64 alone")
def test_a_fuzzer_that_finds_something_fails(tmp_path: Path) -> None:
    """The same machinery on a target that has an error: it ends with another code, and leaves the input."""
    script = (
        "import sys\n"
        "from tests.fuzz import __main__ as fuzz, checking\n"
        "from types import SimpleNamespace\n"
        "def run(data):\n"
        "    if data[:1] == b'\\x00': raise KeyError('found')\n"
        "checking.load = lambda name: SimpleNamespace(run=run, DECLARED=(ValueError,), GROWTH=2**30)\n"
        "checking.corpus = lambda name: []\n"
        "fuzz.main()\n"
    )
    command = [sys.executable, "-c", script, "header", "--seconds", "60", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=600, check=False)
    assert done.returncode != 0
    assert "KeyError, which nobody answers: 'found'" in done.stdout + done.stderr
    assert list((tmp_path / "header").glob("crash-*"))


def _refuse(data: bytes) -> None:
    raise ValueError(data)


def _raise(data: bytes) -> None:
    raise KeyError(data)


def _take_memory(data: bytes) -> None:
    bytearray(b"x") * (checking._peak() + 256 * 2**20)


def _take_time(data: bytes) -> None:
    began = checking.time.process_time()
    while checking.time.process_time() - began < 1.1 * checking.SECONDS:
        pass


def test_what_counts_as_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: Counter[str] = Counter()
    for run in (_refuse, _raise, _take_time, _take_memory):
        monkeypatch.setattr(checking, "SECONDS", 0.2 if run is _take_time else 60.0)
        try:
            checking.check(SimpleNamespace(run=run, DECLARED=(ValueError,), GROWTH=64 * 2**20), b"x")  # type: ignore[arg-type]
            outcomes["fine"] += 1
        except checking.Finding as error:
            outcomes[str(error).split()[0 if "KeyError" in str(error) else 1]] += 1
    assert outcomes == {"fine": 1, "KeyError,": 1, "s": 1, "MiB": 1}

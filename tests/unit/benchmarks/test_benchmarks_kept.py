"""Runs that are made in processes and kept: each once, whole or not at all."""

from __future__ import annotations

import multiprocessing
import operator
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks import kept_runs


def test_each_run_comes_with_what_it_made() -> None:
    made = list(kept_runs.make(partial(operator.mul, 3), [1, 2, 4], workers=2))
    assert {run: outcome for run, outcome, _ in made} == {1: 3, 2: 6, 4: 12}
    assert made[-1][2].startswith("3/3, about 0 min left")


def test_nothing_missing_needs_no_process() -> None:
    assert list(kept_runs.make(partial(operator.mul, 3), [], workers=2)) == []


def test_what_a_run_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(kept_runs.make(partial(operator.floordiv, 1), [0, 1], workers=1))


def test_giving_up_ends_its_own_processes_and_no_others() -> None:
    mine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    mine.start()
    try:
        with subprocess.Popen(["sleep", "600"]) as another:
            made = kept_runs.make(time.sleep, [0, 600], workers=2)
            next(made)
            its_own = set(multiprocessing.active_children()) - {mine}
            assert its_own
            made.close()
            for child in its_own:
                child.join()
                assert child.exitcode == -signal.SIGTERM
            assert another.poll() is None
            assert mine.is_alive()
            another.kill()
    finally:
        mine.kill()
        mine.join()


def test_what_sigterm_did_before_it_does_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    list(kept_runs.make(abs, [1], workers=1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one.json"

    def half() -> None:
        with kept_runs.whole(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert list(path.parent.iterdir()) == []
    with kept_runs.whole(path) as file:
        file.write(b"all")
    assert path.read_bytes() == b"all"
    assert list(path.parent.iterdir()) == [path]


def test_the_same_settings_are_called_the_same() -> None:
    assert kept_runs.digest_of({"a": 1, "b": [2]}) == kept_runs.digest_of({"b": [2], "a": 1})
    assert kept_runs.digest_of({"a": 1}) != kept_runs.digest_of({"a": 2})

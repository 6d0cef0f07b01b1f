"""Runs that are made in processes and kept: each once, whole or not at all."""

from __future__ import annotations

import operator
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

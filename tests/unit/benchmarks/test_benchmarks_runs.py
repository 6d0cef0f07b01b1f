"""The table of runs: whole rows or none, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import federated_runs
from benchmarks.federated_runs import Result, Run, append, attacked, known, read

RUN = Run("linear", "drawn", "iid:10", "krum:hostile=0.2,trim=0.1", "alie", 0.2, True, 1, 15, 3, 1, 64, 0.03, "loss")
RESULT = Result(10, 0.5, 0.25, 0.125, 1.0, float("nan"), 0, "non_finite=2", "a=0.5;b=0.1", 1.5)


def test_what_is_written_is_known(tmp_path: Path) -> None:
    table = tmp_path / "folder" / "runs.csv"
    assert read(table) == []
    append(table, RUN, RESULT)
    other = replace(RUN, seed=2, screening=False)
    append(table, other, RESULT)
    rows = read(table)
    assert known(rows) == {RUN.key, other.key}
    assert replace(RUN, rate=0.01).key not in known(rows)
    assert [(row["strategy"], row["balanced_accuracy"], row["rejected"]) for row in rows] == [
        (RUN.strategy, "0.25", "non_finite=2")
    ] * 2


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_row_that_was_cut_off_is_no_row(tmp_path: Path, cut: int) -> None:
    table = tmp_path / "runs.csv"
    append(table, RUN, RESULT)
    append(table, replace(RUN, seed=2), RESULT)
    table.write_bytes(table.read_bytes()[:-cut])
    assert known(read(table)) == ({RUN.key} if cut > 1 else {RUN.key, replace(RUN, seed=2).key})
    append(table, replace(RUN, seed=3), RESULT)
    assert replace(RUN, seed=3).key in known(read(table))
    assert RUN.key in known(read(table))


def test_a_table_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        read(table)


def test_rules_are_told_how_many_attack_and_are_judged_by_themselves() -> None:
    found = attacked(["fedavg", "krum:hostile={f}"], ["none", "alie"], [0.0, 0.1, 0.4])
    assert found == [
        ("fedavg", "none", 0.0),
        ("fedavg", "alie", 0.1),
        ("fedavg", "alie", 0.4),
        ("krum:hostile=0.2", "none", 0.0),
        ("krum:hostile=0.4", "none", 0.0),
        ("krum:hostile=0.2", "alie", 0.1),
        ("krum:hostile=0.4", "alie", 0.4),
    ]
    assert federated_runs.assuming("median", 0.4) == "median"

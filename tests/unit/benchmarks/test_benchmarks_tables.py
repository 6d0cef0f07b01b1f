"""What the tables say of rows: shares of what is without attack, from the same seeds, and whether goals are met."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest

from benchmarks import federated_report, federated_tables
from benchmarks.federated_runs import COLUMNS, Result, Run


def row(strategy: str, attack: str, seed: int, balanced: float, **changed: Any) -> dict[str, str]:
    share = 0.0 if attack == "none" else 0.2
    run = Run("linear", "drawn", "iid:10", strategy, attack, share, True, seed, 15, 3, 1, 64, 0.03, "loss")
    result = Result(10, 0.5, balanced, balanced / 2, 0.5, 0.02, 0, "", "", 1.0)
    whole = dict(zip(COLUMNS, map(str, [*astuple(run), *astuple(result)]), strict=True))
    return whole | {name: str(value) for name, value in changed.items()}


def test_a_share_is_of_the_same_seeds() -> None:
    rows = [row("median", "none", 1, 0.5), row("median", "none", 2, 0.9), row("median", "alie", 1, 0.4)]
    found = federated_tables.cells(rows)
    key = ("iid:10", "median", "alie", 0.2, True)
    assert federated_tables.kept(found, key) == pytest.approx(0.8)
    assert found["iid:10", "median", "none", 0.0, True].balanced == pytest.approx(0.7)
    assert found["iid:10", "median", "none", 0.0, True].deviation["balanced_accuracy"] == pytest.approx(
        0.2828, abs=1e-3
    )


@pytest.mark.parametrize(
    ("kept", "subtle", "door", "goal"),
    [(0.96, 0.86, 0.1, "met"), (0.94, 0.86, 0.1, "missed"), (0.96, 0.84, 0.1, "missed"), (0.96, 0.86, 0.11, "missed")],
)
def test_a_goal_is_met_or_missed(kept: float, subtle: float, door: float, goal: str) -> None:
    rows = [row("krum:hostile=0.2", "none", 1, 0.5)]
    rows += [row("krum:hostile=0.2", attack, 1, 0.5 * subtle) for attack in ("alie", "min_max")]
    rows += [row("krum:hostile=0.2", "ipm:10", 1, 0.5 * kept)]
    rows += [row("krum:hostile=0.2", "backdoor", 1, 0.5, backdoor=door)]
    text = federated_report.robust(rows)
    (line,) = [each for each in text.splitlines() if each.startswith("| krum") and "ipm:10" in each]
    assert line.endswith(f"| {goal} |")
    assert f"{kept:.0%} (ipm:10)" in line


def test_strategies_stand_beside_pooled_training() -> None:
    rows = [row("pooled", "none", seed, 0.6) for seed in (1, 2)]
    rows += [row("fedavg", "none", 1, 0.5), row("scaffold", "none", 1, 0.58), row("alone", "none", 1, 0.7)]
    text = federated_report.strategies(rows)
    assert "scaffold: 96.7%, met" in text
    assert [each.split("|")[1].strip() for each in text.splitlines() if each.startswith("| ")] == [
        "strategy",
        "alone",
        "pooled",
        "scaffold",
        "fedavg",
    ]

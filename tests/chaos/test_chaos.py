"""Every process is killed at every step of a round, and the job ends with the bytes of the one that nobody disturbed.

`CHAOS=all` does all of the matrix, `before` or `after` its half of that moment, a number that many pairs, drawn by
`CHAOS_SEED`; each call and each process is in a sample before any of them is twice. The table goes to `CHAOS_TABLE`.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from .steps import Moment, Step
from .world import ASKING, QUEUED, Outcome, World

SAMPLE = os.environ.get("CHAOS", "11")
SEED = int(os.environ.get("CHAOS_SEED", "8"))
TABLE = Path(os.environ.get("CHAOS_TABLE", "var/chaos.md"))
RECOVERY_SECONDS = 30.0
Pair = tuple[str, Step]


def matrix(world: World) -> list[Pair]:
    """Every process at every step; a hospital that has no part in a step is none of it."""
    return [
        (name, step)
        for moment in Moment
        for step in world.steps()
        if step.moment is moment
        for name in world.processes
        if not (name == QUEUED and "on HTTPS" in str(step)) and not (name == ASKING and "on the queue" in str(step))
    ]


def drawn(pairs: list[Pair]) -> list[Pair]:
    if SAMPLE == "all":
        return pairs
    if not SAMPLE.isdigit():
        return [(name, step) for name, step in pairs if step.moment is Moment(SAMPLE)]
    left = pairs.copy()
    random.Random(SEED).shuffle(left)
    chosen: list[Pair] = []
    names: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    while left and len(chosen) < int(SAMPLE):
        best = min(left, key=lambda pair: names[pair[0]] + calls[pair[1].call.name])
        left.remove(best)
        chosen.append(best)
        names[best[0]] += 1
        calls[best[1].call.name] += 1
    return chosen


def test_whoever_is_killed_at_whatever_step_the_job_ends_with_the_same_bytes(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = [world.train(None, None) for _ in range(2)]
    assert [each.faults for each in undisturbed] == [(), ()]
    digest = undisturbed[0].digest
    assert undisturbed[1].digest == digest, "two undisturbed runs of the same seeds differ"
    pairs = matrix(world)
    chosen = drawn(pairs)
    with capsys.disabled():
        print(
            f"\n{len(world.processes)} processes, {len(world.steps())} steps, {len(pairs)} pairs; database: "
            f"{world.database}; killed here: {len(chosen)}"
        )
        for step in world.steps():
            print(f"  {step}")
        print(f"undisturbed: {undisturbed[1].seconds:.1f} s, {digest[:12]}…", flush=True)
    outcomes: list[tuple[Pair, Outcome]] = []
    for at, (name, step) in enumerate(chosen, 1):
        world.settle()
        outcome = world.train(step, name)
        if outcome.digest != digest:
            other = f"its digest is {outcome.digest[:12] or 'none'}"
            outcome = replace(outcome, faults=(*outcome.faults, other))
        outcomes.append(((name, step), outcome))
        _write(world, len(pairs), undisturbed[1], outcomes)  # what is done is kept, whatever comes
        with capsys.disabled():
            said = "; ".join((*outcome.faults, *outcome.restarts)) or "same bytes"
            print(
                f"{at}/{len(chosen)} {name} killed {step}: {outcome.seconds:.1f} s, recovered in "
                f"{outcome.recovery:.1f} s: {said}",
                flush=True,
            )
    failed = [f"{name} killed {step}: {'; '.join(each.faults)}" for (name, step), each in outcomes if each.faults]
    assert not failed, "\n".join(failed)
    slow = [
        f"{name} killed {step}: {each.recovery:.1f} s"
        for (name, step), each in outcomes
        if each.recovery > RECOVERY_SECONDS
    ]
    assert not slow, "\n".join(slow)


def _write(world: World, pairs: int, undisturbed: Outcome, outcomes: list[tuple[Pair, Outcome]]) -> None:
    """The table, for people and with its figures for machines."""
    equal = sum(not each.faults for _, each in outcomes)
    recoveries = [each.recovery for _, each in outcomes]
    lines = [
        f"# Chaos of {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{len(outcomes)} of {pairs} pairs of a process and a step, on {platform.platform()}, {os.cpu_count()} "
        f"processors, Python {platform.python_version()}, {world.database}, Ganache, Redis.",
        f"Equal bytes, nothing lost, nothing twice: {equal} of {len(outcomes)}. Recovery: median "
        f"{statistics.median(recoveries):.1f} s, worst {max(recoveries):.1f} s. A job nobody disturbs takes "
        f"{undisturbed.seconds:.1f} s.",
        "",
        "| killed | at | job, s | recovery, s | found |",
        "|---|---|---:|---:|---|",
        *(
            f"| {name} | {step} | {each.seconds:.1f} | {each.recovery:.1f} | {'; '.join(each.faults) or 'same bytes'} |"
            for (name, step), each in outcomes
        ),
    ]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n")

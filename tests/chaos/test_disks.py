"""A byte flips on the store's disk in the middle of a round: it is found, named, and the right bytes come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from .steps import Moment, Step
from .world import CALLS, World


def step(name: str, moment: Moment) -> Step:
    return Step(next(call for call in CALLS if call.name == name), moment)


def flip_newest(world: World) -> None:
    """Change a byte of what was stored last, as a disk would: nobody is told."""
    newest = max(world.stored(), key=lambda path: path.stat().st_mtime_ns)
    _flip(newest)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "where",
    [
        step("a hospital on the queue submits its update", Moment.BEFORE),
        step("a hospital on HTTPS submits its update", Moment.BEFORE),
        step("the coordinator closes the round", Moment.AFTER),
    ],
    ids=str,
)
def test_a_flipped_byte_is_found_and_who_has_the_bytes_brings_them_again(
    world: World, where: Step, capsys: pytest.CaptureFixture[str]
) -> None:
    world.settle()
    undisturbed = world.train(None, None)
    assert undisturbed.faults == ()
    world.settle()
    outcome = world.train(where, None, strike=lambda: flip_newest(world))
    with capsys.disabled():
        print(f"\na byte flipped {where}: {outcome.seconds:.1f} s instead of {undisturbed.seconds:.1f}", flush=True)
    assert outcome.faults == ()
    assert outcome.digest == undisturbed.digest
    assert world.put_aside(), "nobody noticed"
    assert not world.changed(), "a changed file is still where it was"

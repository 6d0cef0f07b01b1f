"""A call of the contract, ready to be sent, and how its effect is known. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Effect(NamedTuple):
    """The event by which a call's effect is known, whoever brought it about: its name, and arguments that it has."""

    name: str
    arguments: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Call:
    """A call to send: where, what bytes, what to remember it by, and its effect, where repeating is refused."""

    to: str | None
    data: str
    function: str
    job: str | None = None
    round: int | None = None
    hospital: str | None = None
    effect: Effect | None = None

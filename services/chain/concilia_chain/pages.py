"""Events asked for page by page: which ones, and from where on. Pure.

A page ends at an event and the next begins behind it, named by block and log index: what is recorded meanwhile moves
nothing, and a far page costs no more than the first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from concilia_kit.wire.chain import RecordedEvent

from concilia_chain.errors import CursorMalformed
from concilia_chain.events import Event
from concilia_chain.membership import moment


class Place(NamedTuple):
    """An event's place in the chain."""

    block: int
    log_index: int

    def __str__(self) -> str:
        return f"{self.block}-{self.log_index}"


class Wanted(NamedTuple):
    """Which events are asked for; what is None or empty excludes nothing. Both blocks are included."""

    names: tuple[str, ...] = ()
    job: str | None = None
    round: int | None = None
    account: str | None = None
    from_block: int | None = None
    to_block: int | None = None


def place(cursor: str) -> Place:
    """The place that a cursor names. Raises `CursorMalformed`."""
    if re.fullmatch("[0-9]{1,18}-[0-9]{1,9}", cursor) is None:
        raise CursorMalformed("a cursor is what an earlier page gave as 'before': a block, '-' and a log index")
    block, log_index = cursor.split("-")
    return Place(int(block), int(log_index))


def recorded(event: Event) -> RecordedEvent:
    """An event as it crosses the wire."""
    names = ("name", "job", "round", "account", "block", "log_index", "transaction", "arguments")
    return RecordedEvent.model_validate({**{name: getattr(event, name) for name in names}, "at": moment(event)})

"""A place in the two streams that a job's watcher reads, as the text that server-sent events carry as their id. Pure.

Source: Redis streams: an id is `milliseconds-sequence`, two unsigned 64-bit numbers; WHATWG HTML, "Last-Event-ID".
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self

START = "0-0"
"""Before a stream's first entry."""

_NUMBER = r"([0-9]{1,20})"
_POSITION = re.compile(rf"{_NUMBER}-{_NUMBER}_{_NUMBER}-{_NUMBER}")


class Position(NamedTuple):
    """The last entry seen of the ledger's stream and of the job's own; `START` where none was."""

    ledger: str
    job: str

    def __str__(self) -> str:
        return f"{self.ledger}_{self.job}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The place that a text names, None where it is malformed."""
        match = _POSITION.fullmatch(text)
        if match is None:
            return None
        numbers = [int(number) for number in match.groups()]
        if max(numbers) >= 2**64:
            return None
        return cls(f"{numbers[0]}-{numbers[1]}", f"{numbers[2]}-{numbers[3]}")

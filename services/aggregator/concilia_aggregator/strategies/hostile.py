"""How many updates of a round are taken for hostile."""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Hostile:
    """At most the whole part of this share of the updates."""

    share: float = SHARE

    def of(self, count: int, most: int) -> int:
        """How many of so many updates, and no more than a rule can stand."""
        return max(min(int(self.share * count + 1e-9), most), 0)


def most_hostile(count: int, each: int, more: int) -> int:
    """The most that a rule stands which needs `each` updates for a hostile one, and `more` beside."""
    return max((count - more) // each, 0)

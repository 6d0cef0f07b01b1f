"""Who shares masks and secrets with whom in a round: groups, and a graph in each, that follow from the roster alone.

Members are named by their index in the roster; a member's place, of which its shares are, is its index plus one.
A group is laid out in a circle, in an order that the roster's digest decides. Up to `COMPLETE` members all are
neighbours. Above, a member's neighbours are the `degree` nearest, half on either side (a Harary graph).

Source: Bell et al. (2020), section 3.3.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from concilia_kit.masking.errors import MaskingError
from concilia_kit.wire.masking import FEWEST_MEMBERS, Roster

COMPLETE = 64
"""Most members of a group whose graph is complete in any case."""

_PRIVATE, _SUCCEEDS = 40, 20
"""A graph gives somebody away, or cannot be unmasked, at most once in so many rounds, as powers of two."""
_COLLUDING = 5
"""One member in so many may collude with the aggregator."""
_ORDER = b"concilia masking order v1"


@dataclass(frozen=True, slots=True)
class Degree:
    """A group's graph in numbers: `neighbours` of each member; `shares` of its secrets that give them back; `arc`, how
    many of any `neighbours / 2` members in a row are asked for, so that what is left hangs together."""

    neighbours: int
    shares: int
    arc: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A roster's groups and graph; made by `graph`.

    `digest`: the roster's. `index`: of each hospital. `groups`: members' indices, ascending, by group; one group of all
    where the roster has no size of groups. `group_of`: each member's. `neighbours`: of each member. `thresholds`: how
    many shares each member's secrets need. `needed`: of each group, how many must share, be in the sum, agree to it and
    reveal: `ceil(threshold * members)`.
    """

    digest: str
    index: dict[str, int]
    groups: tuple[tuple[int, ...], ...]
    group_of: tuple[int, ...]
    neighbours: tuple[frozenset[int], ...]
    thresholds: tuple[int, ...]
    needed: tuple[int, ...]
    _circles: tuple[tuple[int, ...], ...]
    _degrees: tuple[Degree, ...]

    def holders(self, member: int) -> frozenset[int]:
        """Who holds shares of a member's secrets: its neighbours and itself."""
        return self.neighbours[member] | {member}

    def is_missing(self, hospitals: Collection[str]) -> bool:
        """Whether these are too few: of any group fewer than `needed`; or where the graph is not complete, too few of
        anybody's holders, or of any arc. To be asked of sharers, survivors, consents and reveals; whoever is no member
        does not count."""
        there = {self.index[each] for each in hospitals if each in self.index}
        return any(
            self._is_missing(circle, degree, needed, there)
            for circle, degree, needed in zip(self._circles, self._degrees, self.needed, strict=True)
        )

    def gives_away(self, survivors: Collection[str]) -> bool:
        """Whether a sum that these are in, of any group, is of fewer than `FEWEST_MEMBERS`."""
        there = Counter(self.group_of[self.index[each]] for each in survivors if each in self.index)
        return any(there[group] < FEWEST_MEMBERS for group in range(len(self.groups)))

    @staticmethod
    def _is_missing(circle: Sequence[int], degree: Degree, needed: int, there: set[int]) -> bool:
        here = [member in there for member in circle]
        if sum(here) < needed:
            return True
        if degree.neighbours == len(circle) - 1:
            return False
        half = degree.neighbours // 2
        around = _sums(here, 2 * half + 1)
        return min(around) < degree.shares or min(_sums(here, half)) < degree.arc


@lru_cache(maxsize=8)
def graph(roster: Roster) -> Graph:
    """The graph of a roster; the same one for the same roster, which is remembered (a roster is frozen).

    Raises `MaskingError` where members are not in ascending order of address, each once, or too few
    (`is_possible`).
    """
    hospitals = roster.hospitals
    places = [int(each, 16) for each in hospitals]
    if any(before >= after for before, after in pairwise(places)):
        raise MaskingError("the roster's members are not in ascending order of address, each once")
    count = len(hospitals)
    if not is_possible(count, roster.group):
        raise MaskingError(f"{count} members are too few")
    digest = roster.digest()
    circles = tuple(_circles(digest, count, roster.group))
    degrees = tuple(degree(len(each), roster.threshold) for each in circles)
    neighbours: list[frozenset[int]] = [frozenset()] * count
    thresholds, group_of = [0] * count, [0] * count
    for at, (circle, its) in enumerate(zip(circles, degrees, strict=True)):
        for place, member in enumerate(circle):
            neighbours[member] = frozenset(_around(circle, place, its.neighbours))
            thresholds[member], group_of[member] = its.shares, at
    return Graph(
        digest,
        {hospital: at for at, hospital in enumerate(hospitals)},
        tuple(tuple(sorted(each)) for each in circles),
        tuple(group_of),
        tuple(neighbours),
        tuple(thresholds),
        tuple(least(len(each), roster.threshold) for each in circles),
        circles,
        degrees,
    )


def is_possible(hospitals: int, group: int | None) -> bool:
    """Whether so many hospitals are enough for a roster: 3, and one whole group."""
    return hospitals >= max(FEWEST_MEMBERS, group or 0)


def least(members: int, threshold: float) -> int:
    """`ceil(threshold * members)`; a threshold that was meant as a third, or two, is taken as that."""
    return math.ceil(Fraction(threshold).limit_denominator(10**6) * members)


@lru_cache(maxsize=64)
def degree(members: int, threshold: float) -> Degree:
    """The smallest graph for a group of so many that is safe and useful; the complete one up to `COMPLETE` members, and
    where no smaller one is.

    Assumed: a fifth of the members collude with the aggregator, as many drop out as the threshold allows, and neither
    knew the order when they were chosen. Safe, but for once in 2**40 rounds over all members: of no member's neighbours
    do as many collude as its secrets' shares need; and no two arcs, each half a member's neighbours, have so many of
    theirs collude that those who do not are told apart by who is said to have dropped out (an aggregator may say it of
    whom it likes; nodes ask `Graph.is_missing`). Useful, but for once in 2**20 rounds: enough are left of everybody's
    holders, and of every arc. Counted exactly, by hypergeometric tails.

    An aggregator that colludes with a member can try many rosters until it likes the order: 2**20 tries leave 2**-20.
    """
    complete = Degree(members - 1, least(members, threshold), 0)
    if members <= COMPLETE:
        return complete
    others, left = members - 1, least(members, threshold) - 1
    colluding, lost = members // _COLLUDING, others - left
    for neighbours in range(2, members - 1, 2):
        half = neighbours // 2
        shares = _rare(others, colluding, neighbours, 2**_PRIVATE * members)
        # Of two arcs that have nothing in common, one having many makes it less likely that the other has.
        arc = _rare(others, colluding, half, math.isqrt(2 ** (_PRIVATE - 1) * members**2) + 1)
        if (
            shares <= neighbours
            and arc <= half
            and _rare(others, lost, neighbours, 2**_SUCCEEDS * members) <= neighbours - shares + 1
            and _rare(others, lost, half, 2**_SUCCEEDS * members) <= half - arc + 1
        ):
            return Degree(neighbours, shares, arc)
    return complete


def _rare(population: int, marked: int, draws: int, odds: int) -> int:
    """The least number of which it is true that so many of the drawn ones, or more, are marked once in `odds` times at
    most: a tail of the hypergeometric distribution, in whole numbers."""
    ways, tail = math.comb(population, draws), 0
    for count in range(min(marked, draws), -1, -1):
        tail += math.comb(marked, count) * math.comb(population - marked, draws - count)
        if tail * odds > ways:
            return count + 1
    return 0


def _circles(digest: str, members: int, group: int | None) -> Iterator[tuple[int, ...]]:
    """Members in the order that a digest decides, cut into groups whose sizes differ by one at most."""
    seed = _ORDER + bytes.fromhex(digest)
    order = sorted(range(members), key=lambda each: hashlib.sha256(seed + each.to_bytes(4, "big")).digest())
    count = 1 if group is None else members // group
    for at in range(count):
        yield tuple(order[members * at // count : members * (at + 1) // count])


def _around(circle: Sequence[int], place: int, neighbours: int) -> Iterator[int]:
    if neighbours == len(circle) - 1:
        yield from (member for member in circle if member != circle[place])
        return
    for away in range(1, neighbours // 2 + 1):
        yield circle[place - away]
        yield circle[(place + away) % len(circle)]


def _sums(here: Sequence[bool], length: int) -> list[int]:
    """How many are true of each `length` in a row, around a circle."""
    total = sum(here[:length])
    sums = []
    for start in range(len(here)):
        sums.append(total)
        total += here[(start + length) % len(here)] - here[start]
    return sums

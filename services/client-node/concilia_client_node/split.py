"""Who gets which lesion: sites from one folder, and the held-out lesions of a site. Pure, and the same everywhere.

The unit is always the lesion, never the image: pictures of one lesion look alike, and one of them on each side of a
split would let a model be examined on what it has seen. Every order comes from SHA-256 of seed and lesion id, so a
split depends neither on the order of rows in a file nor on a library's random stream (but for Dirichlet's proportions,
which NumPy draws).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np

HELD_OUT_SHARE = 0.2


class Scheme(StrEnum):
    """How a folder is divided into sites."""

    ALL = "all"
    COLLECTION = "collection"
    IID = "iid"
    DIRICHLET = "dirichlet"


@dataclass(frozen=True, slots=True)
class SiteChoice:
    """One site of a folder, as the setting `site` spells it: `all`, `collection:NAME`, `iid:I/N`,
    `dirichlet:ALPHA:I/N` (I counts from 0)."""

    scheme: Scheme
    name: str = ""
    index: int = 0
    sites: int = 1
    alpha: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the setting. Raises `ValueError` with the accepted spellings."""
        if text == "all":
            return cls(Scheme.ALL)
        if (match := re.fullmatch(r"collection:(\S+)", text)) is not None:
            return cls(Scheme.COLLECTION, name=match[1])
        if (match := re.fullmatch(r"(?:iid|dirichlet:(\d+(?:\.\d+)?)):(\d{1,6})/(\d{1,6})", text)) is not None:
            alpha, index, sites = match[1], int(match[2]), int(match[3])
            if index < sites and (alpha is None or float(alpha) > 0):
                if alpha is None:
                    return cls(Scheme.IID, index=index, sites=sites)
                return cls(Scheme.DIRICHLET, index=index, sites=sites, alpha=float(alpha))
        raise ValueError(
            f"'{text}' names no site; write 'all', 'collection:NAME', 'iid:0/4' or 'dirichlet:0.3:0/4' "
            "(the first of four sites is 0)"
        )

    def __str__(self) -> str:
        if self.scheme is Scheme.ALL:
            return "all"
        if self.scheme is Scheme.COLLECTION:
            return f"collection:{self.name}"
        middle = f"{self.alpha:g}:" if self.scheme is Scheme.DIRICHLET else ""
        return f"{self.scheme}:{middle}{self.index}/{self.sites}"


@dataclass(frozen=True, slots=True)
class Split:
    """A site's lesions, divided: each lesion id on exactly one side."""

    training: frozenset[str]
    held_out: frozenset[str]


def in_hash_order(lesions: Iterable[str], seed: int) -> list[str]:
    """Lesion ids in the order of SHA-256 of `seed:lesion`."""
    return sorted(lesions, key=lambda lesion: hashlib.sha256(f"{seed}:{lesion}".encode()).digest())


def collection_of_lesions(images: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The one collection of each lesion, from (lesion, collection) pairs, one pair an image.

    A lesion that spans collections goes wholly to the one with most of its images, among equals to the first by name.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for lesion, collection in images:
        counts[lesion][collection] += 1
    return {lesion: min(counter, key=lambda name: (-counter[name], name)) for lesion, counter in counts.items()}


def assign_iid(labels: Mapping[str, int], sites: int, seed: int) -> dict[str, int]:
    """A site number for each lesion of `labels` (lesion to class): classes spread evenly, sizes equal but for one."""
    order = [lesion for _, lesions in _by_class(labels) for lesion in in_hash_order(lesions, seed)]
    return {lesion: position % sites for position, lesion in enumerate(order)}


def assign_dirichlet(labels: Mapping[str, int], sites: int, alpha: float, seed: int) -> dict[str, int]:
    """A site number for each lesion: of each class, every site gets a share drawn from Dirichlet(alpha).

    Small alpha makes sites unlike each other. Source: Hsu, Qi, Brown, arXiv:1909.06335 (2019).
    """
    assigned: dict[str, int] = {}
    for label, lesions in _by_class(labels):
        shares = np.random.default_rng([seed, label]).dirichlet(np.full(sites, alpha))
        bounds = np.rint(np.cumsum(shares) * len(lesions)).astype(int)
        bounds[-1] = len(lesions)  # a rounding error must not leave a lesion without a site
        for position, lesion in enumerate(in_hash_order(lesions, seed)):
            assigned[lesion] = int(np.searchsorted(bounds, position, side="right"))
    return assigned


def hold_out(labels: Mapping[str, int], seed: int, share: float = HELD_OUT_SHARE, before: Split | None = None) -> Split:
    """Divide a site's lesions (lesion to class): of each class the nearest number to `share` is held out.

    Wherever a class has two lesions or more, at least one lands on each side; a single lesion is trained on. Lesions of
    `before` stay on their sides, whatever comes or goes: only what is new is divided, so that shares are as they were.
    """
    old = before or Split(frozenset(), frozenset())
    known = old.held_out | old.training
    held_out = set(labels.keys() & old.held_out)
    for _, lesions in _by_class(labels):
        kept = sum(lesion in old.held_out for lesion in lesions)
        count = min(len(lesions) - 1, max(1, round(len(lesions) * share)))
        new = in_hash_order((each for each in lesions if each not in known), seed)
        held_out.update(new[: max(0, count - kept)])
    return Split(frozenset(labels.keys() - held_out), frozenset(held_out))


def stratified_cap(labels: Sequence[int], limit: int, seed: int) -> list[int]:
    """Positions of at most `limit` images, classes in their proportions (largest remainder), ascending.

    Every class that is there keeps one image as long as `limit` allows.
    """
    if len(labels) <= limit:
        return list(range(len(labels)))
    positions: defaultdict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        positions[label].append(position)
    exact = {label: limit * len(found) / len(labels) for label, found in positions.items()}
    quota = {label: max(1, int(share)) for label, share in exact.items()}
    by_need = sorted(exact, key=lambda label: (quota[label] - exact[label], label))
    while (missing := limit - sum(quota.values())) != 0:
        for label in by_need if missing > 0 else reversed(by_need):
            step = 1 if missing > 0 else -1
            # taking away goes on below one image only where there are more classes than places
            floor = 1 if limit >= len(quota) else 0
            if missing and floor <= quota[label] + step <= len(positions[label]):
                quota[label] += step
                missing -= step
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(positions[label])[: quota[label]] for label in sorted(positions)]
    return sorted(int(position) for part in chosen for position in part)


def _by_class(labels: Mapping[str, int]) -> list[tuple[int, list[str]]]:
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for lesion, label in labels.items():
        groups[label].append(lesion)
    return sorted(groups.items())

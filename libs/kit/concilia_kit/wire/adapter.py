"""Adapter files, as jobs ask for them and files name themselves: only what is trained, over a trunk named by digest.

What such a file holds is in `concilia_kit.adapters`. This needs no NumPy, for those who only look at headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import StringConstraints

TRUNK = "concilia.trunk"
"""In an adapter file, and in every model folded over it: SHA-256 of the whole model's file that it goes over."""
ADAPTER = "concilia.adapter"
"""In the same files: an `AdapterKind`."""
NORMS = "norms"
LORA = "lora"
MAX_RANK = 64

_KIND = r"^(norms|lora:([1-9]|[1-5][0-9]|6[0-4]))$"
AdapterKind = Annotated[str, StringConstraints(pattern=_KIND)]
"""`norms`: the head and all that is no kernel; `lora:R`: besides, factors of rank R of the kernels, 1 to 64."""


def rank_of(kind: str) -> int:
    """The rank of a kind's factors, 0 where it has none. Raises `ValueError` for what is no kind."""
    if re.fullmatch(_KIND, kind) is None:
        raise ValueError(f"'{kind}' is no kind of adapter; there are norms and lora:R, R from 1 to {MAX_RANK}")
    return 0 if kind == NORMS else int(kind.removeprefix(f"{LORA}:"))


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter file says of itself: digest of its trunk, and its kind."""

    trunk: str
    kind: str

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self | None:
        """What a file's metadata say; None of a file that is no adapter. Raises `ValueError` where they say half of it,
        or something that cannot be."""
        trunk, kind = metadata.get(TRUNK), metadata.get(ADAPTER)
        if trunk is None and kind is None:
            return None
        if trunk is None or kind is None:
            raise ValueError("an adapter names its trunk and its kind")
        if re.fullmatch("[0-9a-f]{64}", trunk) is None:
            raise ValueError("the adapter names its trunk by what is no digest")
        rank_of(kind)
        return cls(trunk, kind)

    def metadata(self) -> dict[str, str]:
        """As `of` takes them."""
        return {TRUNK: self.trunk, ADAPTER: self.kind}

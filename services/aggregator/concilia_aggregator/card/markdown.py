"""Markdown from text that anybody may have written. Source: CommonMark 0.31, section 2.4; GitHub's tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"[!#$&*<>@\[\\\]^_`{|}~]")
# What GitHub makes a link of by itself, and what is a list's, or a rule, where it begins a line.
_LINK = re.compile(r"(?<=:)/|(?<=\bwww)\.", re.I)
_LIST = re.compile(r"^(\d{0,9})([-+.)])(?!\d)")


def plain(text: str) -> str:
    """Text that reads as it is, whatever is in it: no markup, no HTML, no link, no new line."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    for what in (_MARKUP, _LINK):
        line = what.sub(r"\\\g<0>", line)
    return _LIST.sub(r"\1\\\2", line)


def code(text: str) -> str:
    """A digest, an address or another word without blanks, to be copied."""
    return f"`{text}`" if re.fullmatch(r"[A-Za-z0-9_.:+-]+", text) else plain(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; empty where it has no row."""
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def bullets(lines: Sequence[str]) -> str:
    """A list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)

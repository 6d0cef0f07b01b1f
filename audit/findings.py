"""What a check finds, and the answers that were written to it.

Answers are the rows of the tables in `docs/audit.md`, which people read and this reads: check, finding, how often,
reason, and the day by which somebody looks again. From that day on an answer is none. An answer to what is no longer
found is a fault as well, so that the page says what is the case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

PAGE = Path("docs/audit.md")
_ROW = re.compile(r"\|\s*([\w-]+)\s*\|\s*`([^`]+)`\s*\|\s*(\d+)\s*\|\s*(\S.*?)\s*\|\s*(\d{4}-\d{2}-\d{2})\s*\|")


@dataclass(frozen=True, slots=True)
class Finding:
    """`key` is what an answer names: stable while lines move. `text` says where it is and what."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A row: `count` findings of `key` by `check` are answered by `reason` until `until`."""

    check: str
    key: str
    count: int
    reason: str
    until: date


@dataclass(slots=True)
class Report:
    """How a check ended. `note` is what was looked at, `faults` cannot be answered, `unasked` could not be asked."""

    check: str
    note: str
    findings: list[Finding] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)


class PageMalformed(ValueError):
    """A row of the page that cannot be read."""


def answers(page: str) -> tuple[Answer, ...]:
    """The rows of the page's tables. Raises `PageMalformed` for a row that is none, or a second one to a finding."""
    found: dict[tuple[str, str], Answer] = {}
    answering = False  # within a table of answers
    for number, line in enumerate(page.splitlines(), 1):
        answering = line.startswith("| check |") or (answering and line.startswith("|"))
        if not answering or line.startswith(("| check |", "|---")):
            continue
        match = _ROW.fullmatch(line.strip())
        if match is None:
            raise PageMalformed(f"{PAGE}, line {number}: a row is | check | `finding` | count | reason | YYYY-MM-DD |")
        try:
            answer = Answer(match[1], match[2], int(match[3]), match[4], date.fromisoformat(match[5]))
        except ValueError as error:
            raise PageMalformed(f"{PAGE}, line {number}: {error}") from error
        if (answer.check, answer.key) in found:
            raise PageMalformed(f"{PAGE}, line {number}: {answer.key} is answered twice")
        found[answer.check, answer.key] = answer
    return tuple(found.values())


def open_matters(report: Report, given: Iterable[Answer], today: date) -> list[str]:
    """What of a report is unanswered: a line each. Empty where all is clean or answered."""
    own = {answer.key: answer for answer in given if answer.check == report.check}
    counts = Counter(finding.key for finding in report.findings)
    left = list(report.faults)
    for key, count in counts.items():
        answer = own.get(key)
        if answer is not None and answer.until <= today:
            left.append(f"{key}: its answer was good until {answer.until}; look again")
        elif answer is None or answer.count != count:
            said = "" if answer is None else f" ({answer.count} answered, {count} found)"
            left += [f"{each.key}: {each.text}{said}" for each in report.findings if each.key == key]
    if not report.unasked:  # who was not asked may still have it
        left += [f"{key}: answered in {PAGE}, and no longer found" for key in own.keys() - counts.keys()]
    return left

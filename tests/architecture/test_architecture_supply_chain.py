"""What `make audit` looks at and needs no network for: locks, the page of answers, our own code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from audit import code, locks
from audit.findings import PAGE, Answer, answers, open_matters

ROOT = Path(__file__).parents[2]


def test_locks_agree_with_constraints_and_hold_every_dependency() -> None:
    assert locks.python_faults(ROOT) == [], "run `make lock`"
    assert sum(map(len, locks.read(ROOT).values())) > 200


def test_npm_packages_are_locked_by_hash() -> None:
    assert locks.npm_faults(ROOT) == []
    there = {path.parent.name for path in ROOT.glob("*/package-lock.json")}
    assert there == set(locks.NPM), "a lock file that nobody audits"


ALLOWED = ("locked,", "\\", "--require-hashes", "--no-index", "TORCH_INDEX", "${TORCH_INDEX}")


def test_images_and_make_install_by_hash() -> None:
    image, make = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    for name in ("light", "torch", "build"):
        assert f"--require-hashes -r /locks/{name}.txt" in image
    assert "--require-hashes $(addprefix -r locks/" in make
    for line in [*image.splitlines(), *make.splitlines()]:
        if "pip install" in line or re.search(r"\binstall .*PIP_FLAGS", line):
            # by lock, of wheels that were built here, or of torch from an index of the operator's choice
            assert any(word in line for word in ALLOWED), line


def test_answers_are_in_form_and_good_today() -> None:
    given = answers((ROOT / PAGE).read_text())
    today = datetime.now(UTC).date()
    assert [answer.key for answer in given if answer.until <= today] == []
    assert [answer.key for answer in given if (answer.until - today).days > 370] == [], "look again within a year"
    assert {answer.check for answer in given} <= {"bandit", "secrets", "pip-audit", "npm-audit"}


REMEDY_DAYS = {"critical": 7, "high": 30, "medium": 90, "low": 180}
_ADVISORY = re.compile(r"(critical|high|medium|low), (\d{4}-\d\d-\d\d): .+")


def overdue(given: Iterable[Answer]) -> list[str]:
    """Answers to advisories that are good for longer than a remedy may take, or do not say from when."""
    late = []
    for answer in given:
        if answer.check not in {"pip-audit", "npm-audit"}:
            continue
        said = _ADVISORY.fullmatch(answer.reason)
        allowed = said and date.fromisoformat(said[2]) + timedelta(days=REMEDY_DAYS[said[1]])
        if not allowed or answer.until > allowed:
            late.append(answer.key)
    return late


def test_answers_to_advisories_keep_to_the_times_to_remedy() -> None:
    page = (ROOT / PAGE).read_text()
    times = page.partition("## Times to remedy")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| (\w+)[^|]* \| (\d+) days \|$", times, re.MULTILINE)) == {
        severity: str(days) for severity, days in REMEDY_DAYS.items()
    }
    assert overdue(answers(page)) == []


@pytest.mark.parametrize(
    ("check", "reason", "until", "is_overdue"),
    [
        ("pip-audit", "high, 2026-11-01: not reached.", "2026-12-01", False),
        ("pip-audit", "high, 2026-11-01: not reached.", "2026-12-02", True),
        ("npm-audit", "critical, 2026-11-01: waits for a release.", "2026-11-09", True),
        ("npm-audit", "not reached.", "2026-11-09", True),
        ("bandit", "a word of the metrics.", "2027-11-09", False),
    ],
)
def test_an_answer_that_waits_too_long_is_found(check: str, reason: str, until: str, is_overdue: bool) -> None:
    assert bool(overdue([Answer(check, "X", 1, reason, date.fromisoformat(until))])) is is_overdue


def test_our_own_code_is_clean_or_answered() -> None:
    given = answers((ROOT / PAGE).read_text())
    assert open_matters(code.check(ROOT), given, datetime.now(UTC).date()) == []

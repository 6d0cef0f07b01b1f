"""What `make audit` looks at and needs no network for: locks, the page of answers, our own code."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from audit import code, locks
from audit.findings import PAGE, answers, open_matters

ROOT = Path(__file__).parents[2]


def test_locks_agree_with_constraints_and_hold_every_dependency() -> None:
    assert locks.python_faults(ROOT) == [], "run `make lock`"
    assert sum(map(len, locks.read(ROOT).values())) > 200


def test_npm_packages_are_locked_by_hash() -> None:
    assert locks.npm_faults(ROOT) == []
    there = {path.parent.name for path in ROOT.glob("*/package-lock.json")}
    assert there == set(locks.NPM), "a lock file that nobody audits"


def test_images_and_make_install_by_hash() -> None:
    image, make = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    for name in ("light", "torch", "build"):
        assert f"--require-hashes -r /locks/{name}.txt" in image
    assert "--require-hashes $(addprefix -r locks/" in make
    for line in [*image.splitlines(), *make.splitlines()]:
        if "pip install" in line or re.search(r"\binstall .*PIP_FLAGS", line):
            # by lock, of wheels that were built here, or of torch from an index of the operator's choice
            assert any(word in line for word in ("locked,", "\\", "--no-index", "TORCH_INDEX", "${TORCH_INDEX}")), line


def test_answers_are_in_form_and_good_today() -> None:
    given = answers((ROOT / PAGE).read_text())
    today = datetime.now(UTC).date()
    assert [answer.key for answer in given if answer.until <= today] == []
    assert [answer.key for answer in given if (answer.until - today).days > 370] == [], "look again within a year"
    assert {answer.check for answer in given} <= {"bandit", "secrets", "pip-audit", "npm-audit"}


def test_our_own_code_is_clean_or_answered() -> None:
    given = answers((ROOT / PAGE).read_text())
    assert open_matters(code.check(ROOT), given, datetime.now(UTC).date()) == []

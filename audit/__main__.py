"""`python -m audit` (`make audit`): one line a check, and 0 where everything is clean or answered in `docs/audit.md`.

`AUDIT_OFFLINE=1` lets pass that advisories could not be asked for; without it, that is a failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from audit import advisories, bills, code, locks, secret_scan
from audit.findings import PAGE, PageMalformed, Report, answers, open_matters

ROOT = Path(__file__).parents[1]


def _python_locks() -> Report:
    count = sum(len(pins) for pins in locks.read(ROOT).values())
    return Report("locks", f"{count} pins with hashes", faults=locks.python_faults(ROOT))


def _npm_locks() -> Report:
    return Report("npm-locks", ", ".join(locks.NPM), faults=locks.npm_faults(ROOT))


def _installed() -> Report:
    there = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return Report("installed", f"{len(there)} distributions", faults=locks.installed_faults(ROOT, there))


CHECKS: tuple[Callable[[], Report], ...] = (
    _python_locks,
    _npm_locks,
    _installed,
    lambda: bills.check(ROOT, ROOT / "var/sbom"),
    lambda: code.check(ROOT),
    lambda: secret_scan.check(ROOT),
    lambda: advisories.python(ROOT),
    lambda: advisories.npm(ROOT),
)


def main() -> int:
    """Run all checks; the exit code."""
    offline = os.environ.get("AUDIT_OFFLINE") == "1"
    try:
        given = answers((ROOT / PAGE).read_text())
    except PageMalformed as error:
        print(error)
        return 1
    failed, today = False, datetime.now(UTC).date()
    seen = set()
    for run in CHECKS:
        report = run()
        seen.add(report.check)
        left = open_matters(report, given, today)
        answered = len(report.findings) - len(left) + len(report.faults)
        failed |= bool(left) or bool(report.unasked and not offline)
        state = "FAIL" if left else ("ok" if not report.unasked else "not asked" if offline else "FAIL")
        print(f"{state:9} {report.check}: {report.note}" + (f"; {answered} answered" if answered > 0 else ""))
        for line in (*left, *(f"not asked: {each}" for each in report.unasked)):
            print(f"          {line}")
    for name in sorted({answer.check for answer in given} - seen):
        failed = True
        print(f"FAIL      {PAGE} answers a check of the name {name}, and there is none")
    if failed and not offline:
        print("where advisories cannot be had, AUDIT_OFFLINE=1 checks the rest and says what was not asked")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

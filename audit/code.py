"""Our own code: bandit's checks. ruff has rules of the same name (`make lint`); bandit knows more, and no `noqa`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from audit.findings import Finding, Report

FOLDERS = ("libs", "services", "deploy", "audit", "benchmarks")
SKIPPED = ("B101", "B404")
"""Asserts state what a reader may rely on, and nothing here runs under -O. Importing `subprocess` is no
fault: its calls are looked at (B603)."""


def check(root: Path) -> Report:
    """Run bandit; a finding's key is its test and the package that it is in."""
    command = [sys.executable, "-m", "bandit", "--quiet", "--format", "json", "--skip", ",".join(SKIPPED)]
    command += ["--exclude", "*/node_modules/*,*/build/*", "--recursive", *FOLDERS]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    report = Report("bandit", f"{document['metrics']['_totals']['loc']} lines")
    report.faults += [f"{each['filename']}: {each['reason']}" for each in document["errors"]]
    for each in document["results"]:
        path = Path(each["filename"])
        key = (
            f"{each['test_id']} {'/'.join(path.parts[:2] if path.parts[0] in ('libs', 'services') else path.parts[:1])}"
        )
        report.findings.append(Finding(key, f"{path}:{each['line_number']}: {each['issue_text']}"))
    return report

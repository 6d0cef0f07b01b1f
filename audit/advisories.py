"""Known vulnerabilities of what is locked: PyPI's advisories by pip-audit, npm's by npm itself.

Where an index has no advisories, nobody was asked, and that is said: no answer is not a good one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from audit.findings import Finding, Report
from audit.locks import LOCKS, NPM, read


def python(root: Path) -> Report:
    """Ask of every distribution that is locked, on any machine."""
    pins = {pin.name.lower(): pin.version for name in LOCKS for pin in read(root)[name].values()}
    with tempfile.TemporaryDirectory() as folder:
        listed, told = Path(folder) / "all.txt", Path(folder) / "told.json"
        listed.write_text("".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed), "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(told)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        document = json.loads(told.read_text()) if told.exists() and told.stat().st_size else None
    report = Report("pip-audit", f"{len(pins)} distributions")
    if document is None:
        report.unasked.append(f"PyPI: {_last_line(done.stderr)}")
        return report
    skipped = [each["name"] for each in document["dependencies"] if "skip_reason" in each]
    if skipped:
        report.unasked.append(f"PyPI has no answer for {len(skipped)} of {len(pins)} ({', '.join(skipped[:3])}, …)")
    for each in document["dependencies"]:
        for found in each.get("vulns", ()):
            report.findings.append(Finding(found["id"], f"{each['name']} {each['version']}: {_first_line(found)}"))
    return report


def npm(root: Path) -> Report:
    """Ask of every package in the lock files."""
    report = Report("npm-audit", f"{len(NPM)} lock files")
    program = shutil.which("npm")
    if program is None:
        report.unasked.append("npm is not on PATH")
        return report
    for folder in NPM:
        done = subprocess.run(
            [program, "audit", "--json", "--package-lock-only"],
            cwd=root / folder,
            env={**os.environ, "NO_UPDATE_NOTIFIER": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            document: dict[str, Any] = json.loads(done.stdout)
            packages = document["vulnerabilities"]
        except (ValueError, KeyError):
            report.unasked.append(f"npm, for {folder}: {_last_line(done.stderr or done.stdout)}")
            continue
        for name, package in packages.items():
            for via in package["via"]:
                if isinstance(via, dict):
                    advisory = via["url"].rsplit("/", 1)[-1]
                    report.findings.append(Finding(f"{advisory} {folder}", f"{name} {via['range']}: {via['title']}"))
    return report


def _first_line(found: dict[str, Any]) -> str:
    text = (found.get("description") or "").strip().splitlines()
    fixed = ", ".join(found.get("fix_versions", ())) or "no version"
    return f"{text[0][:100] if text else 'no description'} (mended in {fixed})"


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if "log of this run" not in line]
    told = [line for line in lines if "error" in line.lower() or "warn" in line.lower()] or lines or ["no word"]
    return told[0][:160]

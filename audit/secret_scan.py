"""Secrets in what is checked in, or ever was: every line of the tree and of every commit, by detect-secrets' detectors.

Its detectors of entropy are left out: digests, addresses and hashes are this product's language. A raw Ethereum key has
no mark of its own, so a detector of ours takes 64 hexadecimal digits beside a word for a key.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.core.scan import scan_line
from detect_secrets.settings import transient_settings

from audit.findings import Finding, Report

_ETHEREUM = re.compile(r"(?i)(private|secret|signing|admin)[\w -]{0,12}key\W{1,8}(0x)?[0-9a-f]{64}\b")
_LONGEST = 20_000  # characters of a line: beyond are compiled contracts and pictures


def check(root: Path) -> Report:
    """Look at every line once, wherever it is or was."""
    lines: dict[str, str] = {}
    for path, line in (*_tree(root), *_history(root)):
        lines.setdefault(line.strip(), path)
    findings = [Finding(f"{kind} {path}", _blotted(line)) for kind, path, line in _found(lines)]
    commits = len(_git(root, "rev-list", "--all").split())
    return Report("secrets", f"{len(lines)} lines of the tree and {commits} commits", findings)


def kinds(line: str) -> list[str]:
    """What a line seems to hold; for tests, and slow for many lines."""
    return [kind for kind, _, _ in _found({line: ""})]


def _found(lines: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    names: list[str] = [detector.__name__ for detector in get_mapping_from_secret_type_to_class().values()]
    with transient_settings({"plugins_used": [{"name": name} for name in names if "Entropy" not in name]}):
        for line, path in lines.items():
            if not 8 <= len(line) <= _LONGEST:
                continue
            for kind in sorted({secret.type for secret in scan_line(line)}):
                yield kind, path, line
            if _ETHEREUM.search(line):
                yield "Ethereum Key", path, line


def _tree(root: Path) -> Iterator[tuple[str, str]]:
    """Lines of all files that are checked in, or would be."""
    for name in _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        path = root / name
        if name and path.is_file() and not path.is_symlink():
            yield from ((name, line) for line in path.read_text(errors="replace").splitlines())


def _history(root: Path) -> Iterator[tuple[str, str]]:
    """Lines that any commit added."""
    path = ""
    for line in _git(root, "log", "--all", "-p", "-U0", "--no-color", "--no-ext-diff", "--format=").splitlines():
        if line.startswith("+++ "):
            path = line[6:]
        elif line.startswith("+"):
            yield path, line[1:]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace")


def _blotted(line: str) -> str:
    return re.sub(r"[A-Za-z0-9+/=_-]{12,}", lambda found: found[0][:4] + "…", line)[:120]

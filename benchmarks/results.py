"""Results as they are kept: all numbers as JSON and the table as Markdown, with machine, versions and date."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_VERSIONS = ("numpy", "torch", "fastapi", "uvicorn", "sqlalchemy", "celery", "redis", "web3", "opacus", "dp-accounting")


def write(name: str, document: Mapping[str, Any], table: str, folder: Path) -> Path:
    """Write NAME-DATE.json and NAME-DATE.md, with the time where that day has some; returns the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    about = machine()
    path = folder / f"{name}-{now.date().isoformat()}.json"
    if path.exists():
        path = folder / f"{name}-{now:%Y-%m-%dT%H%M}.json"
    path.write_text(
        json.dumps({"at": now.isoformat(timespec="seconds"), "machine": about, **document}, indent=1) + "\n"
    )
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    path.with_suffix(".md").write_text(f"# {name}, {now.date().isoformat()}\n\n{words}\n\n{table}\n")
    return path


def machine() -> dict[str, Any]:
    """Processor, memory, Python and the versions that matter."""
    versions = {}
    for package in _VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()

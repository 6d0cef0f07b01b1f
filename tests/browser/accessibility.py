"""axe-core in the page: what of WCAG and of good practice it finds broken."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

AXE = Path(__file__).parents[2] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"


def violations(page: Page, within: str | None = None) -> list[str]:
    """axe's violations, a line for each element: the rule, how bad it is, which element, and what would mend it."""
    if not page.evaluate("() => 'axe' in globalThis"):
        page.evaluate(_source())
    found: list[dict[str, Any]] = page.evaluate(
        "async (within) => (await axe.run(within ?? document, { resultTypes: ['violations'] })).violations", within
    )
    return [_line(violation, node) for violation in found for node in violation["nodes"]]


def _line(violation: dict[str, Any], node: dict[str, Any]) -> str:
    summary = " ".join(node["failureSummary"].split())
    return f"{violation['id']} ({violation['impact']}) at {' '.join(map(str, node['target']))}: {summary}"


@functools.cache
def _source() -> str:
    if not AXE.is_file():
        pytest.fail("axe-core is not installed; run 'npm --prefix frontend ci'")
    return AXE.read_text()

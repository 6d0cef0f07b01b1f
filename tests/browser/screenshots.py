"""Pictures of whole pages, for people to look at."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page

FOLDER = Path(__file__).parents[2] / "var" / "screenshots"


def take(page: Page, name: str, *, scheme: str, phone: bool) -> Path:
    """Write `<name>-<light|dark>-<desktop|phone>.png`."""
    path = FOLDER / f"{name}-{scheme}-{'phone' if phone else 'desktop'}.png"
    page.screenshot(path=path, full_page=True, animations="disabled")
    return path

"""Web vitals as the page itself measures them (see watch.js)."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Page


@dataclass(frozen=True)
class Vitals:
    """Largest contentful paint in seconds from navigation, cumulative layout shift (no unit)."""

    lcp: float
    cls: float


def of(page: Page) -> Vitals:
    """The vitals of a page, once its first picture was painted."""
    page.wait_for_function("() => __watch.vitals.lcp !== null")
    measured = page.evaluate("() => __watch.vitals")
    return Vitals(lcp=measured["lcp"] / 1000, cls=measured["cls"])

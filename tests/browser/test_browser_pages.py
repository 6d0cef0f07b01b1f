"""Every page, light and dark, on a desktop and on a phone: readable by everybody, quick, still, and worth a look."""

from __future__ import annotations

import json
import statistics
import subprocess
from typing import Any, Literal

import pytest
from playwright.sync_api import expect

from .conftest import MakePerson
from .person import Person
from .stack import ROOT, BrowserStack

DESKTOP, PHONE = 1280, 390
LCP_SECONDS = 2.5
CLS = 0.1
LOADS = 3
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = {"desktop": DESKTOP, "phone": PHONE}
ADDRESSES = {
    "index": "/",
    "job": "/job?id={job}",
    "lineage": "/lineage?job={job}",
    "update": "/update?job={job}&round=1&hospital={hospital}",
    "404": "/no-such-page",
}
"""Where pages are that are not at their own name."""

SEES = {"diagnosis": "clinician"}
"""Who may see pages that an administrator may not."""


def page_names() -> list[str]:
    script = (
        "import('./pages/index.mjs').then(({ PAGES }) => console.log(JSON.stringify(PAGES.map((page) => page.name))))"
    )
    done = subprocess.run(["node", "-e", script], cwd=ROOT / "frontend", capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout)
    return names


NAMES = page_names()


def visit(someone: Person, stack: BrowserStack, name: str) -> None:
    """Open a page by its name, with the finished job where it is about one."""
    hospital = stack.account("node-0").address
    address = ADDRESSES.get(name, f"/{name}").format(job=stack.job.id, hospital=hospital)
    if name == "404":
        someone.expect("console", "status of 404 .* /no-such-page$")
    someone.go(address)


def looks_right(someone: Person, picture: str) -> None:
    """Take a picture; nothing is broken, nothing is cut off, everybody can read it."""
    someone.screenshot(picture)
    expect(someone.page.get_by_role("heading", level=1)).to_have_count(1)
    expect(someone.page.locator(".problem:visible")).to_have_count(0)
    assert someone.overflow() == 0, f"{someone.overflow()} pixels wider than the window"
    found = someone.axe()
    assert found == [], "\n".join([f"{picture}, {someone.scheme}:", *found])


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_a_page_looks_right(person: MakePerson, stack: BrowserStack, name: str, width: int) -> None:
    someone = person(SEES.get(name, "admin"), signed_in=True, width=width)
    for scheme in SCHEMES:
        someone.prefer(scheme)
        visit(someone, stack, name)
        looks_right(someone, name)
        assert someone.vitals().cls < CLS


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_home_looks_right_to_a_stranger(person: MakePerson, width: int) -> None:
    eve = person("auditor", width=width)
    for scheme in SCHEMES:
        eve.prefer(scheme)
        eve.go("/")
        looks_right(eve, "signed-out")
        eve.open_sign_in()
        looks_right(eve, "sign-in")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("index", "404")])
def test_who_is_not_signed_in_is_asked_to(person: MakePerson, stack: BrowserStack, name: str) -> None:
    eve = person("auditor", width=PHONE)
    visit(eve, stack, name)
    expect(eve.page.get_by_role("main").get_by_role("button", name="Sign in")).to_be_visible()
    assert eve.overflow() == 0
    assert eve.axe() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_quick_and_keeps_still(person: MakePerson, stack: BrowserStack, name: str) -> None:
    """The median of three first visits, with nothing cached."""
    measured = []
    for _ in range(LOADS):
        someone = person(SEES.get(name, "admin"), signed_in=True)
        visit(someone, stack, name)
        measured.append(someone.vitals())
    lcp, shift = (
        statistics.median(values) for values in zip(*((each.lcp, each.cls) for each in measured), strict=True)
    )
    print(f"{name}: LCP {lcp:.2f} s, CLS {shift:.3f}")
    assert lcp < LCP_SECONDS
    assert shift < CLS


# ---------------------------------------------------------------------------------------------------- by the keyboard

FOCUSED = """() => {
    const element = document.activeElement;
    if (!element || element === document.body) return null;
    const parts = [element, ...element.querySelectorAll("*"), ...(element.labels ?? [])];
    const look = () => JSON.stringify(parts.map((part) => {
        const { outline, boxShadow, stroke, strokeWidth, borderColor, backgroundColor } = getComputedStyle(part);
        return [outline, boxShadow, stroke, strokeWidth, borderColor, backgroundColor];
    }));
    const focused = look();
    element.blur();
    const blurred = look();
    element.focus({ focusVisible: true, preventScroll: true });
    const box = element.getBoundingClientRect();
    return {
        name: (element.getAttribute("aria-label") ?? element.labels?.[0]?.innerText ?? element.textContent).trim(),
        where: element.closest("main, nav, #account, dialog")?.localName ?? "page",
        marked: focused !== blurred,
        shown: box.width > 0 && box.height > 0 && box.right > 0 && box.bottom > 0,
    };
}"""
"""What has the focus, and whether anything about it, in it, or on its label says so."""


def tab(someone: Person) -> dict[str, Any] | None:
    """Press Tab; what has the focus now."""
    someone.page.keyboard.press("Tab")
    focused: dict[str, Any] | None = someone.page.evaluate(FOCUSED)
    return focused


def tab_to(someone: Person, name: str) -> None:
    """Press Tab until something of that name has the focus, seen to have it at each step."""
    for _ in range(60):
        focused = tab(someone)
        assert focused is not None, f"the focus left the page before it came to {name}"
        assert focused["marked"], f"the focus is not seen on {focused}"
        assert focused["shown"], f"the focus is on what cannot be seen: {focused}"
        if focused["name"] == name:
            return
    pytest.fail(f"Tab does not come to {name}")


def test_signing_in_and_out_takes_no_mouse(person: MakePerson) -> None:
    ada = person("admin")
    ada.go("/")
    tab_to(ada, "Sign in")
    ada.page.keyboard.press("Enter")
    expect(ada.page.get_by_role("dialog").get_by_role("button", name="MetaMask")).to_be_visible()
    ada.page.keyboard.press("Escape")
    expect(ada.page.get_by_role("dialog")).to_have_count(0)
    ada.page.keyboard.press("Enter")  # the focus is back where it was
    expect(ada.page.get_by_role("dialog").get_by_role("button", name="MetaMask")).to_be_visible()
    tab_to(ada, "MetaMask")
    ada.page.keyboard.press("Enter")
    expect(ada.page.locator("#account summary")).to_be_visible()
    ada.page.locator("#account summary").focus()
    ada.page.keyboard.press("Enter")
    tab_to(ada, "Sign out")
    ada.page.keyboard.press("Enter")
    expect(ada.page.get_by_role("main").get_by_role("button", name="Sign in")).to_be_visible()


def test_the_first_tab_skips_to_the_content(person: MakePerson) -> None:
    ada = person("admin", signed_in=True)
    ada.go("/jobs")
    focused = tab(ada)
    assert focused is not None
    assert (focused["name"], focused["marked"], focused["shown"]) == ("Skip to content", True, True)
    ada.page.keyboard.press("Enter")
    focused = tab(ada)
    assert focused is not None
    assert focused["where"] == "main"


@pytest.mark.parametrize("name", NAMES)
def test_tab_goes_through_a_page_and_is_seen_all_the_way(person: MakePerson, stack: BrowserStack, name: str) -> None:
    someone = person(SEES.get(name, "admin"), signed_in=True)
    visit(someone, stack, name)
    stops: list[dict[str, Any]] = []
    while len(stops) < 40 and (focused := tab(someone)) is not None:
        if focused["name"] == "Skip to content" and stops:
            break
        stops.append(focused)
    unseen = [stop for stop in stops if not (stop["marked"] and stop["shown"])]
    assert unseen == []
    assert stops[0]["name"] == "Skip to content"
    assert [stop["name"] for stop in stops if stop["where"] == "nav"] == [
        "Home",
        "Jobs",
        "Diagnosis",
        "Ledger",
        "Consortium",
    ]
    assert "main" in [stop["where"] for stop in stops]

"""Somebody in front of a browser: a context of their own, their wallet, and all that the browser complained about."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from eth_account.signers.local import LocalAccount
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, expect

from . import accessibility, screenshots, vitals
from .stack import COOKIE
from .vitals import Vitals
from .wallet import BINDING, EMIT, Wallet

HEIGHTS = {True: 844, False: 900}  # phone, desktop
PHONE_WIDTH = 500  # narrower windows are phones
REMEMBERED = "concilia.wallet"  # where the pages keep which wallet they signed in with

_ALWAYS_EXPECTED = (("console", re.compile(r"status of 401 \(.*\) /api/auth/v1/browser-session$")),)


class Person:
    """A page of a browser context of its own, and the person's hands on it."""

    def __init__(self, context: BrowserContext, key: LocalAccount, wallet: Wallet | None, scheme: str) -> None:
        self.context = context
        self.key = key
        self.scheme = scheme
        self._wallet = wallet
        self._seen: list[tuple[str, str]] = []
        self._expected: list[tuple[str, re.Pattern[str]]] = list(_ALWAYS_EXPECTED)
        self._watch()
        self.page: Page = context.new_page()

    @property
    def wallet(self) -> Wallet:
        """Their wallet."""
        assert self._wallet is not None, "this browser has no wallet"
        return self._wallet

    # -------------------------------------------------------------------------------------------------- going about

    def go(self, path: str) -> Page:
        """Open a page and wait until it has settled."""
        self.page.goto(path)
        self.settled()
        return self.page

    def settled(self) -> None:
        """Wait until the page asks for nothing more and says nowhere that it waits (streams may go on)."""
        self.page.evaluate("() => __watch.settled()")

    def prefer(self, scheme: Literal["light", "dark"]) -> None:
        """Prefer light or dark pages from now on."""
        self.scheme = scheme
        self.page.emulate_media(color_scheme=scheme)

    def sign_in(self, wallet: str = "MetaMask") -> None:
        """Click through the sign-in dialog on the page that is open."""
        self.open_sign_in()
        self.page.get_by_role("dialog").get_by_role("button", name=wallet).click()
        expect(self.page.get_by_role("dialog")).to_have_count(0)
        expect(self.page.locator("#account summary")).to_be_visible()

    def open_sign_in(self) -> None:
        """Open the sign-in dialog, and wait for the wallets in it."""
        self.page.locator("#account").get_by_role("button", name="Sign in").click()
        dialog = self.page.get_by_role("dialog", name="Sign in with your wallet")
        expect(dialog.get_by_text("Looking for wallets")).to_have_count(0)

    def sign_out(self) -> None:
        """Sign out by the account's menu."""
        self.page.locator("#account summary").click()
        self.page.locator("#account").get_by_role("button", name="Sign out").click()
        expect(self.page.locator("#account").get_by_role("button", name="Sign in")).to_be_visible()

    # ---------------------------------------------------------------------------------------------------- looking

    def axe(self, within: str | None = None) -> list[str]:
        """What axe finds wrong with the page, or with what a selector names, a line each."""
        return accessibility.violations(self.page, within)

    def vitals(self) -> Vitals:
        """The largest contentful paint (seconds) and the layout shift of the page so far."""
        return vitals.of(self.page)

    def screenshot(self, name: str) -> None:
        """Write a picture of the whole page under var/screenshots."""
        screenshots.take(self.page, name, scheme=self.scheme, phone=self.is_phone)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        wider: int = self.page.evaluate("() => Math.max(0, document.scrollingElement.scrollWidth - innerWidth)")
        return wider

    @property
    def is_phone(self) -> bool:
        """The window is as narrow as a phone's."""
        return (self.page.viewport_size or {"width": 0})["width"] < PHONE_WIDTH

    # ----------------------------------------------------------------------------------------- what nobody wants

    def expect(self, kind: str, pattern: str) -> None:
        """Say that something of a kind (console, exception, violation) will be seen, and is meant to."""
        assert kind in ("console", "exception", "violation"), kind
        self._expected.append((kind, re.compile(pattern)))

    def seen(self, kind: str) -> list[str]:
        """What was seen of a kind so far, expected or not."""
        return [text for each, text in self._seen if each == kind]

    def close(self) -> list[str]:
        """Close the browser context; returns what was seen and not expected, a line each."""
        self.context.close()
        return [f"{kind}: {text}" for kind, text in self._seen if not self._is_expected(kind, text)]

    def _is_expected(self, kind: str, text: str) -> bool:
        return any(kind == each and pattern.search(text) for each, pattern in self._expected)

    def _watch(self) -> None:
        self.context.on("console", self._on_console)
        self.context.on("weberror", lambda error: self._seen.append(("exception", str(error.error))))
        self.context.expose_binding("__sawViolation", lambda _, text: self._seen.append(("violation", text)))
        self.context.add_init_script(path=Path(__file__).with_name("watch.js"))
        if self._wallet is not None:
            wallet = self._wallet
            self.context.expose_binding(BINDING, lambda _, *asked: wallet.answer(*asked))
            self.context.add_init_script(script=wallet.face)
            wallet.tell = self._tell

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._seen.append(("console", f"{message.text} {urlsplit(message.location['url']).path}".strip()))

    def _tell(self, event: str, value: Any) -> None:
        for page in self.context.pages:
            with contextlib.suppress(Error):  # a page that is just being left
                page.evaluate(f"([event, value]) => globalThis.{EMIT}(event, value)", [event, value])


def open_person(
    browser: Browser,
    url: str,
    key: LocalAccount,
    wallet: Wallet | None,
    *,
    session: str | None,
    scheme: str,
    width: int,
) -> Person:
    """Open a browser context for somebody; `session` is the value of their session's cookie."""
    state: dict[str, Any] = {"cookies": [], "origins": []}
    if session is not None:
        cookie = {"name": COOKIE, "value": session, "domain": urlsplit(url).hostname, "path": "/", "expires": -1}
        state["cookies"] = [{**cookie, "httpOnly": True, "secure": True, "sameSite": "Strict"}]
        if wallet is not None:
            state["origins"] = [{"origin": url, "localStorage": [{"name": REMEMBERED, "value": wallet.names[0][1]}]}]
            wallet.connect()
    context = browser.new_context(
        base_url=url,
        storage_state=state,  # type: ignore[arg-type]
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": HEIGHTS[width < PHONE_WIDTH]},
        reduced_motion="reduce",  # a colour in the middle of a transition is nobody's contrast
    )
    context.set_default_timeout(30_000)
    return Person(context, key, wallet, scheme)

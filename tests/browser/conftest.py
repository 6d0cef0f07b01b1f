"""People in a real browser in front of a whole stack. How to write a test with this:

    def test_an_administrator_sees_jobs(person, stack):
        ada = person("admin", signed_in=True)            # a fresh browser context with a wallet and a session
        ada.go("/jobs")                                  # goto, then waits until the page has settled
        expect(ada.page.get_by_role("link", name=stack.job.spec.name)).to_be_visible()
        assert ada.axe() == []

- `stack` (for the session): everything runs, nobody mocks. `stack.url`; `stack.admin` and `stack.client(name)`, Python
  clients; `stack.account(name)`, the key of admin, clinician, auditor, node-0, node-1, node-2; `stack.stranger()`, a
  fresh key; `stack.grant(address, role)` and `stack.revoke(address, role)`, which return once the chain service knows;
  `stack.job`, a finished job of two rounds; `stack.new_job(rounds=2, **fields_of_JobSpec)` starts a small one (some
  three seconds a round), `stack.await_job(id, condition)` waits for it; `stack.redis`; `stack.pictures`, drawn JPEGs.
- `person(who, *, signed_in=False, wallets=(METAMASK,), chain=None, scheme="light", width=1280)` makes a `Person`: `who`
  is one of the names above, or a key. `chain=1` has the wallet start on another network that it knows alone;
  `wallets=()` is a browser without any, others are pairs of name and reverse domain. `signed_in=True` brings a session
  without clicking; `ada.sign_in()` clicks through the dialog on the page that is open.
- `ada.page` is Playwright's page (paths are below `stack.url`); `ada.go(path)`, `ada.settled()`, `ada.prefer("dark")`;
  `ada.axe()` gives violations as lines (assert that there are none), `ada.vitals()` LCP and CLS, `ada.screenshot(name)`
  writes var/screenshots/<name>-<light|dark>-<desktop|phone>.png, `ada.overflow()` is how many pixels the page is
  wider than the window.
- `ada.wallet` is what a person does in MetaMask (see wallet.py): `choose(key)`, `switch(chain)`, `refuse(method)`,
  `ignore(method)`, `lock()`, `unlock()`, `disconnect()`, `sign_as(key)`; `asked` and `requests(method)`, what the page
  asked so far; `added`, networks a page had added.
- After each test: no console error, no exception and no violation of the content security policy may have been seen. A
  test that provokes some says so before: `ada.expect("console", "regular expression")`; kinds are console, exception,
  violation. An error that the browser prints for a refused request reads "… status of 403 (…) <path>". Asking
  who is signed in when nobody is (401 of /browser-session) is always expected.
- Starting the stack takes half a minute to two. While you write tests, keep one: with BROWSER_STACK=<folder> in the
  environment it is started there once, runs on afterwards, and is used again; it serves frontend/dist as it is built at
  the moment. `python -m concilia demo stop --directory <folder>` stops it.
- Never sleep: Playwright's `expect(…)` and `ada.page.wait_for_function` wait for what should be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest
from eth_account.signers.local import LocalAccount
from playwright.sync_api import Browser, expect, sync_playwright

from .person import Person, open_person
from .stack import BrowserStack, kept_stack, running_stack
from .wallet import METAMASK, Wallet

CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
expect.set_options(timeout=30_000)  # a machine that does much else takes its time

MakePerson = Callable[..., Person]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserStack]:
    """The whole stack, with one job finished."""
    kept = os.environ.get("BROWSER_STACK")
    made = kept_stack(Path(kept).resolve()) if kept else running_stack(tmp_path_factory.mktemp("stack"))
    with made as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    found = next((path for path in CHROMIUM if Path(path).exists()), None)
    if found is None:
        pytest.fail(f"there is no Chromium ({', '.join(CHROMIUM)}); install it: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Beside a failure, what the processes warned of."""
    report = yield
    running = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(running, BrowserStack) and (warned := running.warnings()):
        report.sections.append(("the stack's warnings", warned))
    return report


@pytest.fixture
def person(stack: BrowserStack, browser: Browser) -> Iterator[MakePerson]:
    """Make people; afterwards, see that nothing went wrong in front of them unseen."""
    people: list[Person] = []

    def make(
        who: str | LocalAccount,
        *,
        signed_in: bool = False,
        wallets: Sequence[tuple[str, str]] = (METAMASK,),
        chain: int | None = None,
        scheme: str = "light",
        width: int = 1280,
    ) -> Person:
        key = stack.account(who) if isinstance(who, str) else who
        wallet = Wallet(key, chain or stack.chain_id, names=wallets) if wallets else None
        session = stack.session(key) if signed_in else None
        made = open_person(browser, stack.url, key, wallet, session=session, scheme=scheme, width=width)
        people.append(made)
        return made

    yield make
    unexpected = [line for each in people for line in each.close()]
    reports = stack.csp_reports()
    allowed = stack.csp_reports_expected
    stack.csp_reports_expected = max(reports, allowed)  # one test's report is not every later test's
    assert unexpected == [], "\n".join(["seen by the browser, and not expected:", *unexpected])
    assert reports <= allowed, f"browsers reported {reports - allowed} violations of the content security policy"

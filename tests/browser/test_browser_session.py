"""What the server refuses to take for a sign-in, what a session is good for, and how its end is noticed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from .conftest import MakePerson
from .person import Person
from .stack import BrowserStack

BROWSER_SESSIONS = "/api/auth/v1/browser-sessions"
OTHER_CHAIN = 1


def post(person: Person, path: str, document: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, str]:
    """What a script of the page gets for a request: the status, and the problem's code."""
    script = """async ([path, body, headers]) => {
        const answer = await fetch(path, { method: "POST", body, headers });
        return [answer.status, (await answer.json()).code ?? ""];
    }"""
    status, code = person.page.evaluate(
        script, [path, json.dumps(document), {"Content-Type": "application/json", **(headers or {})}]
    )
    return status, code


def test_the_very_same_message_does_not_sign_in_twice(person: MakePerson) -> None:
    ada = person("admin")
    ada.expect("console", f"status of 401 .* {BROWSER_SESSIONS}$")
    ada.go("/")
    with ada.page.expect_request(f"**{BROWSER_SESSIONS}") as signing_in:
        ada.sign_in()
    sent = signing_in.value.post_data_json
    assert sent is not None
    assert post(ada, BROWSER_SESSIONS, sent) == (401, "nonce_unknown")


def other_domain(message: str) -> str:
    return re.sub(r"^\S+ wants", "phishing.example wants", message)


def other_uri(message: str) -> str:
    return re.sub(r"\nURI: .*", "\nURI: https://phishing.example", message)


def other_chain(message: str) -> str:
    return re.sub(r"\nChain ID: .*", f"\nChain ID: {OTHER_CHAIN}", message)


def expired(message: str) -> str:
    def at(hours: int) -> str:
        return (datetime.now(UTC) - timedelta(hours=hours)).isoformat().replace("+00:00", "Z")

    dated = re.sub(r"\nIssued At: .*", f"\nIssued At: {at(2)}", message)
    return re.sub(r"\nExpiration Time: .*", f"\nExpiration Time: {at(1)}", dated)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (other_domain, "domain_mismatch"),
        (other_uri, "uri_mismatch"),
        (other_chain, "chain_mismatch"),
        (expired, "message_expired"),
    ],
)
def test_a_message_that_is_not_for_here_and_now_is_refused(
    person: MakePerson, stack: BrowserStack, changed: Callable[[str], str], code: str
) -> None:
    """The key's owner signed it, its nonce is fresh: only what it says is wrong."""
    ada = person("admin")
    ada.expect("console", f"status of 401 .* {BROWSER_SESSIONS}$")
    ada.go("/")
    message = changed(stack.challenge(ada.key))
    signed = {"message": message, "signature": stack.signed(message, ada.key)}
    assert post(ada, BROWSER_SESSIONS, signed) == (401, code)
    assert ada.context.cookies() == []


@pytest.mark.parametrize("headers", [{}, {"X-CSRF-Token": "made-up"}], ids=["none", "made up"])
def test_the_cookie_alone_gets_no_token(person: MakePerson, headers: dict[str, str]) -> None:
    ada = person("admin", signed_in=True)
    ada.expect("console", "status of 403 .* /api/auth/v1/tokens$")
    ada.go("/")
    assert post(ada, "/api/auth/v1/tokens", {"audience": "aggregator"}, headers) == (403, "csrf_token_invalid")


def test_a_session_that_was_ended_on_the_server_is_noticed(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    ada.go("/")
    expect(ada.page.get_by_text("Hospitals enrolled")).to_be_visible()
    _end_session(stack, ada)
    ada.page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")  # as coming back to the tab does
    expect(ada.page.locator("#account").get_by_role("button", name="Sign in")).to_be_visible()
    expect(ada.page.get_by_role("main").get_by_role("heading", name="Sign in to look around")).to_be_visible()
    expect(ada.page.locator("#notices")).to_contain_text("Your session has ended. Please sign in again.")
    ada.sign_in()
    expect(ada.page.locator("#notices")).to_be_empty()


def test_a_session_that_ended_while_somebody_typed_is_noticed(person: MakePerson, stack: BrowserStack) -> None:
    eve = person(stack.stranger(), signed_in=True)
    eve.expect("console", "status of 401 .* /api/auth/v1/tokens$")
    eve.go("/jobs")
    eve.page.get_by_label("Who are you?").fill("A hospital")
    _end_session(stack, eve)
    eve.page.get_by_role("button", name="Ask for it").click()
    expect(eve.page.locator("#notices")).to_contain_text("Your session has ended. Please sign in again.")
    expect(eve.page.get_by_role("main").get_by_role("button", name="Sign in")).to_be_visible()


# ---------------------------------------------------------------------------------------------- without a role, or CSP


def test_who_holds_no_role_can_ask_for_one(person: MakePerson, stack: BrowserStack) -> None:
    eve = person(stack.stranger(), signed_in=True)
    eve.go("/diagnosis")
    expect(eve.page.get_by_role("heading", name="Your account has no role yet")).to_be_visible()
    assert eve.axe() == []
    eve.page.get_by_label("Role").select_option("clinician")
    eve.page.get_by_label("Who are you?").fill("Dr Eve Example")
    eve.page.get_by_label("Anything an administrator should know").fill("<b>Dermatology</b>, first floor")
    eve.page.get_by_role("button", name="Ask for it").click()
    expect(eve.page.get_by_role("main")).to_contain_text("Asked. An administrator sees it under Consortium")
    token = stack.token("admin", "auth")
    filed = httpx.get(f"{stack.url}/api/auth/v1/applications", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    (found,) = [each for each in filed.raise_for_status().json() if each["address"] == eve.key.address]
    assert (found["role"], found["name"]) == ("clinician", "Dr Eve Example")
    assert found["note"] == "<b>Dermatology</b>, first floor"


def test_a_role_that_is_granted_opens_the_page_and_one_that_is_revoked_closes_it(
    person: MakePerson, stack: BrowserStack
) -> None:
    eve = person(stack.stranger(), signed_in=True)
    eve.go("/jobs")
    looks_again = "() => document.dispatchEvent(new Event('visibilitychange'))"
    expect(eve.page.get_by_role("heading", name="Your account has no role yet")).to_be_visible()
    stack.grant(eve.key.address, "auditor")
    eve.page.evaluate(looks_again)
    expect(eve.page.get_by_role("main")).to_contain_text(stack.job.spec.name)
    stack.revoke(eve.key.address, "auditor")
    eve.page.evaluate(looks_again)
    expect(eve.page.get_by_role("heading", name="Your account has no role yet")).to_be_visible()


def test_a_violation_of_the_content_security_policy_would_be_noticed(person: MakePerson, stack: BrowserStack) -> None:
    """What every other test relies on: the browser refuses, tells the page, and reports to the auth service."""
    mallory = person("auditor")
    mallory.expect("console", "Executing inline script violates")
    mallory.expect("violation", "^script-src-elem inline")
    mallory.go("/")
    before = stack.csp_reports()
    stack.csp_reports_expected = before + 1
    mallory.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "globalThis.ran = true";
        document.body.append(script);
    }""")
    stack.await_csp_reports(before + 1)
    assert mallory.page.evaluate("() => globalThis.ran === undefined")
    assert len(mallory.seen("violation")) == 1


def _end_session(stack: BrowserStack, person: Person) -> None:
    token = person.context.cookies()[0]["value"]
    assert stack.redis.delete(f"concilia:auth:session:{hashlib.sha256(token.encode()).hexdigest()}") == 1

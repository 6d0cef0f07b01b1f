"""Signing in with a wallet: the way in, and every way in which it may be refused."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Route, expect

from .conftest import MakePerson
from .person import Person
from .stack import COOKIE, BrowserStack
from .wallet import METAMASK, OLD

BROWSER_SESSIONS = "/api/auth/v1/browser-sessions"
OTHER_CHAIN = 1


def dialog_says(person: Person, text: str | re.Pattern[str]) -> None:
    expect(person.page.get_by_role("dialog").get_by_role("status")).to_contain_text(text)


def press(person: Person, name: str) -> None:
    person.page.get_by_role("dialog").get_by_role("button", name=name).click()


def is_signed_in(person: Person) -> bool:
    return bool(person.context.cookies()) and person.page.locator("#account summary").count() == 1


# -------------------------------------------------------------------------------------------------------- the way in


def test_metamask_is_offered_first(person: MakePerson) -> None:
    eve = person("auditor", wallets=(("A wallet of another name", "com.example.wallet"), METAMASK))
    eve.go("/")
    eve.open_sign_in()
    names = eve.page.get_by_role("dialog").get_by_role("listitem")
    expect(names).to_have_text(["MetaMask", "A wallet of another name"])


def test_the_wallet_that_was_chosen_is_the_one_that_signs(person: MakePerson) -> None:
    other = ("A wallet of another name", "com.example.wallet")
    eve = person("auditor", wallets=(METAMASK, other))
    eve.go("/")
    eve.sign_in(other[0])
    assert {asked.rdns for asked in eve.wallet.asked} == {other[1]}


def test_a_wallet_that_announces_nothing_can_sign_in_too(person: MakePerson) -> None:
    eve = person("auditor", wallets=(OLD,))
    eve.go("/")
    eve.sign_in("Browser wallet")


def test_a_session_outlives_a_reload_and_no_script_can_read_it(person: MakePerson) -> None:
    ada = person("admin")
    ada.go("/")
    ada.sign_in()
    (cookie,) = ada.context.cookies()
    assert cookie["name"] == COOKIE
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, True, "Strict", "/")
    assert ada.page.evaluate("() => document.cookie") == ""
    stored = ada.page.evaluate("() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }])")
    assert cookie["value"] not in stored
    assert "csrf" not in stored

    ada.page.reload()
    ada.page.locator("#account summary").click()
    expect(ada.page.locator("#account")).to_contain_text(ada.key.address)
    expect(ada.page.locator("#account")).to_contain_text("admin")
    assert len(ada.wallet.requests("personal_sign")) == 1


def test_signing_out_ends_the_session_on_the_server_and_takes_the_cookie(person: MakePerson) -> None:
    ada = person("admin")
    ada.go("/")
    ada.sign_in()
    (cookie,) = ada.context.cookies()
    ada.sign_out()
    assert ada.context.cookies() == []
    expect(ada.page.get_by_role("main").get_by_role("button", name="Sign in")).to_be_visible()
    again = httpx.get(
        f"{ada.page.url}api/auth/v1/browser-session", headers={"Cookie": f"{COOKIE}={cookie['value']}"}, timeout=10
    )
    assert (again.status_code, again.json()["code"]) == (401, "session_unknown")


def test_the_message_that_is_signed_names_this_site_this_chain_and_this_account(
    person: MakePerson, stack: BrowserStack
) -> None:
    ada = person("admin")
    ada.go("/")
    ada.sign_in()
    (asked,) = ada.wallet.requests("personal_sign")
    message = bytes.fromhex(asked.params[0].removeprefix("0x")).decode()
    authority = stack.url.removeprefix("http://")
    assert message.startswith(f"{authority} wants you to sign in with your Ethereum account:\n{ada.key.address}\n")
    assert f"\nURI: {stack.url}\n" in message
    assert f"\nChain ID: {stack.chain_id}\n" in message


# --------------------------------------------------------------------------------------------- what a wallet may do


def test_without_a_wallet_the_dialog_says_how_to_get_one(person: MakePerson) -> None:
    eve = person("auditor", wallets=())
    eve.go("/")
    eve.open_sign_in()
    dialog = eve.page.get_by_role("dialog")
    expect(dialog).to_contain_text("No wallet was found in this browser.")
    expect(dialog.get_by_role("link", name="MetaMask")).to_have_attribute("href", "https://metamask.io/download/")
    assert eve.axe("dialog") == []


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("eth_requestAccounts", "You declined to connect in MetaMask. Nothing was changed."),
        ("personal_sign", "You declined to sign in MetaMask. Nothing was changed."),
    ],
)
def test_who_declines_is_told_so_and_may_try_again(person: MakePerson, method: str, sentence: str) -> None:
    ada = person("admin")
    ada.go("/")
    ada.wallet.refuse(method)
    ada.open_sign_in()
    press(ada, "MetaMask")
    dialog_says(ada, sentence)
    assert ada.axe("dialog") == []
    assert not is_signed_in(ada)
    press(ada, "MetaMask")
    expect(ada.page.locator("#account summary")).to_be_visible()


def test_a_locked_wallet_is_told_apart(person: MakePerson) -> None:
    ada = person("admin")
    ada.go("/")
    ada.wallet.lock()
    ada.open_sign_in()
    press(ada, "MetaMask")
    dialog_says(ada, "MetaMask is locked or shows this site no account.")
    ada.wallet.unlock()
    press(ada, "MetaMask")
    expect(ada.page.locator("#account summary")).to_be_visible()


def test_a_wallet_that_still_asks_is_named(person: MakePerson) -> None:
    ada = person("admin")
    ada.go("/")
    ada.wallet.ignore("eth_requestAccounts")
    ada.open_sign_in()
    press(ada, "MetaMask")
    dialog_says(ada, "Waiting for MetaMask…")
    press(ada, "Close")
    expect(ada.page.get_by_role("dialog")).to_have_count(0)
    ada.open_sign_in()
    press(ada, "MetaMask")
    dialog_says(ada, "MetaMask is still waiting for your answer to an earlier question. Open it.")


def test_a_signature_by_another_key_is_refused(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin")
    ada.expect("console", f"status of 401 .* {BROWSER_SESSIONS}$")
    ada.go("/")
    ada.wallet.sign_as(stack.stranger())
    ada.open_sign_in()
    press(ada, "MetaMask")
    dialog_says(ada, "The signature is not by the account that asked to sign in. Please sign in again.")
    assert ada.context.cookies() == []


def test_an_unknown_network_is_added_and_switched_to(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", chain=OTHER_CHAIN)
    ada.go("/")
    ada.open_sign_in()
    press(ada, "MetaMask")
    dialog_says(ada, f"MetaMask is on another network. The consortium's ledger is on chain {stack.chain_id}.")
    assert ada.axe("dialog") == []
    press(ada, "Switch network")
    expect(ada.page.locator("#account summary")).to_be_visible()
    assert ada.wallet.chain == stack.chain_id
    assert ada.wallet.added[stack.chain_id]["rpcUrls"] == [f"{stack.url}/api/chain/v1/rpc"]


def test_a_known_network_is_only_switched_to(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", chain=OTHER_CHAIN)
    ada.wallet.known.add(stack.chain_id)
    ada.go("/")
    ada.open_sign_in()
    press(ada, "MetaMask")
    press(ada, "Switch network")
    expect(ada.page.locator("#account summary")).to_be_visible()
    assert ada.wallet.added == {}


@pytest.mark.parametrize("method", ["wallet_switchEthereumChain", "wallet_addEthereumChain"])
def test_who_declines_the_network_is_not_signed_in(person: MakePerson, method: str) -> None:
    ada = person("admin", chain=OTHER_CHAIN)
    ada.go("/")
    ada.wallet.refuse(method)
    ada.open_sign_in()
    press(ada, "MetaMask")
    press(ada, "Switch network")
    dialog_says(ada, "You declined to change the network in MetaMask. Nothing was changed.")
    assert ada.wallet.chain == OTHER_CHAIN
    assert ada.wallet.requests("personal_sign") == []
    press(ada, "Switch network")
    expect(ada.page.locator("#account summary")).to_be_visible()


def test_another_account_in_the_wallet_is_noticed(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    ada.go("/")
    auditor = stack.account("auditor")
    ada.wallet.choose(auditor)
    notice = ada.page.locator("#notices")
    expect(notice).to_contain_text("here you are still signed in as")
    ada.wallet.choose(ada.key)
    expect(notice).to_be_empty()
    ada.wallet.choose(auditor)
    notice.get_by_role("button").click()
    press(ada, "MetaMask")
    expect(ada.page.get_by_role("dialog")).to_have_count(0)
    ada.page.locator("#account summary").click()
    expect(ada.page.locator("#account")).to_contain_text(auditor.address)
    expect(notice).to_be_empty()


def test_another_account_is_noticed_on_the_very_page_of_signing_in(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin")
    ada.go("/")
    ada.sign_in()
    ada.wallet.choose(stack.account("auditor"))
    expect(ada.page.locator("#notices")).to_contain_text("here you are still signed in as")


def test_another_network_in_the_wallet_is_noticed(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    ada.go("/")
    notice = ada.page.locator("#notices")
    expect(notice).to_be_empty()
    ada.wallet.switch(OTHER_CHAIN)
    expect(notice).to_contain_text(f"MetaMask is on another network (chain {OTHER_CHAIN})")
    assert ada.axe() == []
    notice.get_by_role("button", name="Switch network").click()
    expect(notice).to_be_empty()
    assert ada.wallet.chain == stack.chain_id


# ----------------------------------------------------------------------------------------------- what the server does


def test_a_nonce_that_is_no_longer_known_is_a_sentence(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin")
    ada.expect("console", f"status of 401 .* {BROWSER_SESSIONS}$")
    ada.go("/")

    def late(route: Route) -> None:
        for key in stack.redis.scan_iter("concilia:auth:nonce:*"):
            stack.redis.delete(key)
        route.continue_()

    ada.page.route(f"**{BROWSER_SESSIONS}", late)
    ada.open_sign_in()
    press(ada, "MetaMask")
    dialog_says(ada, "That sign-in request was used before or is too old. Please sign in again.")
    ada.page.unroute(f"**{BROWSER_SESSIONS}")
    press(ada, "MetaMask")
    expect(ada.page.locator("#account summary")).to_be_visible()

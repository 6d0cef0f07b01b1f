"""The consortium in the browser: asking for a role, granting and taking it by typed data, and every way it may fail."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from concilia_kit.roles import Role
from eth_account.signers.local import LocalAccount
from playwright.sync_api import Locator, Page, expect

from .conftest import MakePerson
from .person import Person
from .stack import BrowserStack

SIGN = "eth_signTypedData_v4"
OTHER_CHAIN = 1


def roles(stack: BrowserStack, key: LocalAccount) -> tuple[Role, ...]:
    """What the ledger lets an account do now."""
    return stack.admin.member(key.address).roles


def fill_grant(page: Page, address: str, role: str) -> None:
    page.get_by_label("Address of the account").fill(address)
    page.get_by_role("combobox", name="Role").select_option(role)
    page.get_by_role("button", name="Grant it").click()


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog")


def section(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name)


def typed(person: Person) -> list[dict[str, Any]]:
    """The typed data that a person's wallet was asked to sign so far."""
    return [json.loads(asked.params[1]) for asked in person.wallet.requests(SIGN)]


# --------------------------------------------------------------------------------------------- from asking to holding


def test_a_stranger_asks_and_an_administrator_grants(person: MakePerson, stack: BrowserStack) -> None:
    key, name = stack.stranger(), "Dr Ada Lovelace, Dermatology"
    eve = person(key, signed_in=True)
    page = eve.go("/ledger")
    page.get_by_label("Role").select_option("clinician")
    page.get_by_label("Who are you?").fill(name)
    page.get_by_label("Anything an administrator should know").fill("<b>I see patients on Tuesdays.</b>")
    page.get_by_role("button", name="Ask for it").click()
    expect(page.get_by_text("Asked. An administrator sees it")).to_be_visible()

    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    waiting = section(page, "Applications").get_by_role("listitem").filter(has_text=name)
    expect(waiting).to_contain_text("<b>I see patients on Tuesdays.</b>")
    waiting.get_by_role("button", name="Grant").click()
    expect(dialog(page)).to_contain_text(re.compile(r"Granted in block [\d,]+"))
    (document,) = typed(ada)
    assert document["primaryType"] == "RoleChange"
    assert document["message"]["account"] == key.address
    assert document["message"]["role"] == "0x" + Role.CLINICIAN.identifier.hex()
    assert document["message"]["granted"] is True
    assert roles(stack, key) == (Role.CLINICIAN,)
    dialog(page).get_by_role("button", name="Close").last.click()
    expect(waiting).to_have_count(0)
    expect(section(page, "Clinicians").locator(f'code[title="{key.address}"]')).to_be_visible()
    newest = section(page, "Who decided what").get_by_role("listitem").first
    expect(newest).to_contain_text("granted")
    expect(newest.locator(f'code[title="{key.address}"]')).to_be_visible()
    expect(newest.locator(f'code[title="{ada.key.address}"]')).to_be_visible()

    eve.page.reload()
    expect(eve.page.get_by_role("heading", name="Events")).to_be_visible()
    assert eve.wallet.requests("personal_sign") == []


def test_an_application_is_dismissed(person: MakePerson, stack: BrowserStack) -> None:
    name = f"Somebody by mistake {stack.stranger().address}"
    eve = person(stack.stranger(), signed_in=True)
    eve.go("/consortium")
    eve.page.get_by_label("Who are you?").fill(name)
    eve.page.get_by_role("button", name="Ask for it").click()
    expect(eve.page.get_by_text("Asked. An administrator sees it")).to_be_visible()

    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    waiting = section(page, "Applications").get_by_role("listitem").filter(has_text=name)
    waiting.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_text(f"The application of {name} was dismissed.")).to_be_visible()
    expect(waiting).to_have_count(0)
    assert typed(ada) == []


def test_a_role_is_revoked(person: MakePerson, stack: BrowserStack) -> None:
    key = stack.stranger()
    stack.grant(key.address, "auditor")
    eve = person(key, signed_in=True)
    eve.go("/ledger")
    expect(eve.page.get_by_role("heading", name="Events")).to_be_visible()

    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    member = section(page, "Auditors").get_by_role("listitem").filter(has=page.locator(f'code[title="{key.address}"]'))
    member.get_by_role("button", name="Revoke").click()
    expect(dialog(page)).to_contain_text("nor have models recomputed here")
    assert typed(ada) == []
    assert ada.axe("dialog") == []
    dialog(page).get_by_role("button", name="Revoke it").click()
    expect(dialog(page)).to_contain_text(re.compile(r"Revoked in block [\d,]+"))
    assert ada.axe("dialog") == []
    page.keyboard.press("Escape")
    expect(dialog(page)).to_have_count(0)
    expect(member).to_have_count(0)
    assert roles(stack, key) == ()

    eve.page.reload()
    expect(eve.page.get_by_role("heading", name="Your account has no role yet")).to_be_visible()


# ------------------------------------------------------------------------------------------ what the wallet may refuse


def test_a_declined_signature_changes_nothing_and_can_be_tried_again(person: MakePerson, stack: BrowserStack) -> None:
    key = stack.stranger()
    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    ada.wallet.refuse(SIGN)
    fill_grant(page, key.address.lower(), "auditor")
    expect(dialog(page).get_by_role("status")).to_contain_text("You declined to sign in MetaMask. Nothing was changed.")
    assert ada.axe("dialog") == []
    assert roles(stack, key) == ()
    dialog(page).get_by_role("button", name="Try again").click()
    expect(dialog(page)).to_contain_text("Granted in block")
    assert roles(stack, key) == (Role.AUDITOR,)


def test_a_change_given_up_while_the_wallet_asks_is_not_sent(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    ada.wallet.ignore(SIGN)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "/role-changes" in request.url else None)
    fill_grant(page, stack.stranger().address, "auditor")
    expect(dialog(page)).to_contain_text("Sign in MetaMask")
    dialog(page).get_by_role("button", name="Give it up").click()
    expect(dialog(page)).to_have_count(0)
    assert sent == []


def test_a_wallet_on_another_network_is_switched_before_it_signs(person: MakePerson, stack: BrowserStack) -> None:
    key = stack.stranger()
    ada = person("admin", signed_in=True, chain=OTHER_CHAIN)
    page = ada.go("/consortium")
    fill_grant(page, key.address, "clinician")
    expect(dialog(page)).to_contain_text("Granted in block")
    asked = [each.method for each in ada.wallet.asked]
    assert asked.index("wallet_addEthereumChain") < asked.index(SIGN)
    assert asked.count(SIGN) == 1
    assert ada.wallet.chain == stack.chain_id
    assert roles(stack, key) == (Role.CLINICIAN,)


def test_a_declined_switch_asks_for_no_signature(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True, chain=OTHER_CHAIN)
    page = ada.go("/consortium")
    ada.wallet.refuse("wallet_switchEthereumChain")
    fill_grant(page, stack.stranger().address, "clinician")
    expect(dialog(page)).to_contain_text("You declined to change the network in MetaMask. Nothing was changed.")
    assert typed(ada) == []


def test_typed_data_for_another_network_is_refused_by_the_wallet(person: MakePerson, stack: BrowserStack) -> None:
    key = stack.stranger()
    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    stay = ada.wallet.chain
    script = """async ([address, chain]) => {
        let provider;
        addEventListener("eip6963:announceProvider", ({detail}) => { provider = detail.provider; });
        dispatchEvent(new Event("eip6963:requestProvider"));
        const domain = {name: "Concilia", version: "1", chainId: chain + 1, verifyingContract: address};
        const types = {EIP712Domain: [{name: "chainId", type: "uint256"}]};
        const typed = JSON.stringify({types, domain, primaryType: "EIP712Domain", message: {}});
        return provider.request({method: "eth_signTypedData_v4", params: [address, typed]}).then(
            () => "signed", (error) => error.message);
    }"""
    said = page.evaluate(script, [ada.key.address, stay])
    assert "must match the active chainId" in said
    assert roles(stack, key) == ()


def test_another_account_in_the_wallet_signs_nothing(person: MakePerson, stack: BrowserStack) -> None:
    key = stack.stranger()
    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    ada.wallet.choose(stack.account("auditor"))
    fill_grant(page, key.address, "auditor")
    expect(dialog(page)).to_contain_text("Choose that account in the wallet, or sign in anew.")
    assert typed(ada) == []
    ada.wallet.choose(ada.key)
    dialog(page).get_by_role("button", name="Try again").click()
    expect(dialog(page)).to_contain_text("Granted in block")
    assert roles(stack, key) == (Role.AUDITOR,)


def test_a_signature_by_another_key_is_refused_by_the_contract(person: MakePerson, stack: BrowserStack) -> None:
    key = stack.stranger()
    ada = person("admin", signed_in=True)
    ada.expect("console", r"status of 422 \(.*\) /api/chain/v1/role-changes$")
    page = ada.go("/consortium")
    ada.wallet.sign_as(stack.stranger())
    fill_grant(page, key.address, "auditor")
    expect(dialog(page)).to_contain_text("The signature is not by the account you are signed in with.")
    assert roles(stack, key) == ()


# ------------------------------------------------------------------------------------------- what the ledger may refuse


def test_two_changes_at_once_lose_none(
    person: MakePerson, stack: BrowserStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = stack.stranger(), stack.stranger()
    ada = person("admin", signed_in=True)
    ada.expect("console", r"status of 409 \(.*\) /api/chain/v1/role-changes$")
    page = ada.go("/consortium")
    answer = ada.wallet.answer

    def late(rdns: str, method: str, params: list[Any]) -> dict[str, Any]:
        if method == SIGN and not roles(stack, other):
            stack.grant(other.address, "clinician")  # from another window, while the wallet asked
        return answer(rdns, method, params)

    monkeypatch.setattr(ada.wallet, "answer", late)
    fill_grant(page, key.address, "auditor")
    expect(dialog(page)).to_contain_text("Another role change of yours reached the ledger in between.")
    assert roles(stack, key) == ()
    dialog(page).get_by_role("button", name="Try again").click()
    expect(dialog(page)).to_contain_text("Granted in block")
    assert roles(stack, key) == (Role.AUDITOR,)
    first, second = typed(ada)
    assert second["message"]["nonce"] > first["message"]["nonce"]


def test_an_administrator_no_more_changes_nothing(person: MakePerson, stack: BrowserStack) -> None:
    key, former = stack.stranger(), stack.stranger()
    stack.grant(former.address, "admin")
    bob = person(former, signed_in=True)
    bob.expect("console", r"status of 403 \(.*\) /api/")
    page = bob.go("/consortium")
    expect(section(page, "Grant a role")).to_be_visible()
    stack.revoke(former.address, "admin")
    fill_grant(page, key.address, "auditor")
    expect(page.get_by_text(re.compile("no administrator any more|no role yet")).first).to_be_visible()
    assert typed(bob) == []
    assert roles(stack, key) == ()


def test_the_last_administrator_stays(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    section(page, "Administrators").get_by_role("button", name="Revoke").click()
    expect(dialog(page)).to_contain_text("This is the only administrator.")
    expect(dialog(page).get_by_role("button", name="Revoke")).to_have_count(0)
    assert ada.axe("dialog") == []
    assert stack.admin.member(ada.key.address).roles == (Role.ADMIN,)


# ------------------------------------------------------------------------------------------------------- what is typed


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Type the address of an account."),
        ("Utrecht", "An address begins with 0x."),
        ("0x1234", "An address has 42 characters; this has 6."),
        ("0x" + "g" * 40, "only the digits 0 to 9 and the letters a to f"),
    ],
)
def test_what_is_no_address_opens_no_wallet(person: MakePerson, text: str, sentence: str) -> None:
    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    before = len(ada.wallet.asked)
    fill_grant(page, text, "auditor")
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(page.get_by_label("Address of the account")).to_be_focused()
    assert len(ada.wallet.asked) == before
    expect(dialog(page)).to_have_count(0)


def test_a_wrong_checksum_opens_no_wallet(person: MakePerson) -> None:
    ada = person("admin", signed_in=True)
    ada.expect("console", r"status of 422 \(.*\) /api/chain/v1/members/0x")
    page = ada.go("/consortium")
    before = len(ada.wallet.asked)
    fill_grant(page, "0x1efF47bc3a10a45D4B230B5d10E37751FE6Aa718", "auditor")
    expect(page.get_by_role("alert")).to_contain_text("The capital letters of this address do not fit the rest")
    assert len(ada.wallet.asked) == before


def test_a_role_that_is_held_is_not_granted_again(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    page = ada.go("/consortium")
    fill_grant(page, stack.account("auditor").address, "auditor")
    expect(page.get_by_role("alert")).to_contain_text("This account is an auditor already.")
    assert typed(ada) == []


# --------------------------------------------------------------------------------------------------------- who may act


def test_a_clinician_looks_and_cannot_act(person: MakePerson, stack: BrowserStack) -> None:
    carl = person("clinician", signed_in=True)
    page = carl.go("/consortium")
    hospitals = section(page, "Hospitals")
    for node in stack.admin.nodes():
        expect(hospitals).to_contain_text(node.registration.site)
    expect(hospitals.get_by_text("online", exact=True).first).to_be_visible()
    expect(section(page, "Who decided what").get_by_role("listitem").first).to_be_visible()
    for action in ("Revoke", "Grant", "Dismiss"):
        expect(page.get_by_role("button", name=action)).to_have_count(0)
    expect(section(page, "Applications")).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_reads_well(person: MakePerson, scheme: str, width: int) -> None:
    ada = person("admin", signed_in=True, scheme=scheme, width=width)
    page = ada.go("/consortium")
    expect(section(page, "Members")).to_be_visible()
    assert ada.axe() == []
    assert ada.overflow() == 0
    assert ada.vitals().cls < 0.1

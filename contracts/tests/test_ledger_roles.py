"""Membership: who may change it, directly and by a signature that anybody relays, and the numbers of hospitals."""

from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from contracts.tests.ledger_harness import (
    ADMIN_ROLE,
    AUDITOR_ROLE,
    CLINICIAN_ROLE,
    COORDINATOR_ROLE,
    HOSPITAL_ROLE,
    ROLE_CHANGE_TYPE,
    ROLES,
    Ledger,
    account,
    digest,
    refusal,
)

JOB = digest("job")
BASE = digest("base")
ZERO_ADDRESS = "0x" + "00" * 20

Hospitals = tuple[LocalAccount, ...]


@pytest.fixture
def signing_admin(ledger: Ledger) -> LocalAccount:
    """An admin that holds no ether: it signs and others relay."""
    admin = account(20_000)
    ledger.send("grantRole", ADMIN_ROLE, admin.address, sender=ledger.admin)
    return admin


def change(
    ledger: Ledger, signer: LocalAccount, role: bytes, subject: str, granted: bool = True, **fields: Any
) -> tuple[tuple[Any, ...], str, bytes]:
    """The arguments of `changeRole`; `fields` replace the nonce, the deadline, the named admin or the domain."""
    admin = fields.get("admin", signer.address)
    nonce = fields.get("nonce", ledger.view("nonces", admin))
    deadline = fields.get("deadline", ledger.chain.now + 600)
    message = {"role": role, "account": subject, "granted": granted, "nonce": nonce, "deadline": deadline}
    signed = signer.sign_typed_data(
        ledger.domain(**fields.get("domain", {})), {"RoleChange": ROLE_CHANGE_TYPE}, message
    )
    return tuple(message.values()), admin, bytes(signed.signature)


def role_event(name: str, role: bytes, subject: str, sender: str) -> tuple[str, dict[str, Any]]:
    return name, {"role": role, "account": subject, "sender": sender}


def test_the_roles_are_the_hashes_of_their_names(ledger: Ledger) -> None:
    names = ("ADMIN_ROLE", "COORDINATOR_ROLE", "HOSPITAL_ROLE", "CLINICIAN_ROLE", "AUDITOR_ROLE")
    assert tuple(ledger.view(name) for name in names) == ROLES
    assert ledger.view("DEFAULT_ADMIN_ROLE") == ADMIN_ROLE
    assert {ledger.view("getRoleAdmin", role) for role in ROLES} == {ADMIN_ROLE}


def test_the_constructor_names_admin_and_coordinator(ledger: Ledger) -> None:
    holders = {ADMIN_ROLE: ledger.admin, COORDINATOR_ROLE: ledger.coordinator}
    for role, holder in holders.items():
        for other in (ledger.deployer, ledger.admin, ledger.coordinator):
            assert ledger.view("hasRole", role, other) == (other == holder)


def test_the_constructor_refuses_nobody(ledger: Ledger) -> None:
    assert ledger.deployment_refused(ZERO_ADDRESS, ledger.coordinator) == refusal("EmptyValue")
    assert ledger.deployment_refused(ledger.admin, ZERO_ADDRESS) == refusal("EmptyValue")


def test_the_domain_is_told(ledger: Ledger) -> None:
    fields, name, version, chain_id, contract, salt, extensions = ledger.view("eip712Domain")
    assert (fields, salt, extensions) == (b"\x0f", bytes(32), [])
    assert ledger.domain() == {
        "name": name,
        "version": version,
        "chainId": chain_id,
        "verifyingContract": contract,
    }


@pytest.mark.parametrize(("interface", "supported"), [("01ffc9a7", True), ("7965db0b", True), ("ffffffff", False)])
def test_eip165(ledger: Ledger, interface: str, supported: bool) -> None:
    assert ledger.view("supportsInterface", bytes.fromhex(interface)) is supported


def test_hospitals_are_numbered_for_good(
    ledger: Ledger, hospitals: Hospitals, signing_admin: LocalAccount, stranger: LocalAccount
) -> None:
    addresses = [hospital.address for hospital in hospitals]
    assert [ledger.view("hospitalNumber", address) for address in addresses] == [1, 2, 3]
    assert ledger.view("hospitalNumber", stranger.address) == 0

    receipt = ledger.send("grantRole", HOSPITAL_ROLE, stranger.address, sender=ledger.admin)
    assert ledger.events(receipt) == [
        role_event("RoleGranted", HOSPITAL_ROLE, stranger.address, ledger.admin),
        ("HospitalNumbered", {"hospital": stranger.address, "number": 4}),
    ]
    ledger.send("revokeRole", HOSPITAL_ROLE, stranger.address, sender=ledger.admin)
    assert ledger.view("hospitalNumber", stranger.address) == 4
    receipt = ledger.send(
        "changeRole", *change(ledger, signing_admin, HOSPITAL_ROLE, stranger.address), sender=ledger.relay
    )
    assert ledger.events(receipt) == [role_event("RoleGranted", HOSPITAL_ROLE, stranger.address, ledger.relay)]
    assert ledger.view("hospitalNumber", stranger.address) == 4

    again = ledger.send("grantRole", HOSPITAL_ROLE, stranger.address, sender=ledger.admin)
    assert ledger.events(again) == []
    other = account(10_001).address
    receipt = ledger.send("changeRole", *change(ledger, signing_admin, HOSPITAL_ROLE, other), sender=ledger.relay)
    assert ledger.events(receipt)[1] == ("HospitalNumbered", {"hospital": other, "number": 5})


@pytest.mark.parametrize("role", [COORDINATOR_ROLE, CLINICIAN_ROLE, AUDITOR_ROLE, ADMIN_ROLE])
def test_only_hospitals_are_numbered(ledger: Ledger, stranger: LocalAccount, role: bytes) -> None:
    receipt = ledger.send("grantRole", role, stranger.address, sender=ledger.admin)
    assert ledger.events(receipt) == [role_event("RoleGranted", role, stranger.address, ledger.admin)]
    assert ledger.view("hospitalNumber", stranger.address) == 0


def test_every_way_out_of_the_hospital_role_ends_submitting(ledger: Ledger, signing_admin: LocalAccount) -> None:
    """The ledger keeps a copy of the hospital role beside the number; no way may leave the copy behind."""
    ledger.open(JOB, BASE)
    # One of eth-tester's own, since to renounce it must pay for gas.
    key: LocalAccount = Account.from_key(ledger.chain.tester.backend.account_keys[5].to_bytes())
    member = key.address
    submission = ledger.submission(ledger.update(key, JOB, BASE))

    def revoke() -> None:
        ledger.send("revokeRole", HOSPITAL_ROLE, member, sender=ledger.admin)

    def renounce() -> None:
        ledger.send("renounceRole", HOSPITAL_ROLE, member, sender=member)

    def revoke_by_signature() -> None:
        signed = change(ledger, signing_admin, HOSPITAL_ROLE, member, granted=False)
        ledger.send("changeRole", *signed, sender=ledger.relay)

    for leave in (revoke, renounce, revoke_by_signature):
        ledger.enrol(member)
        assert ledger.view("hasRole", HOSPITAL_ROLE, member)
        leave()
        assert not ledger.view("hasRole", HOSPITAL_ROLE, member)
        assert ledger.refused(*submission) == refusal("NotHospital", member)

    ledger.enrol(member)
    ledger.send("revokeRole", CLINICIAN_ROLE, member, sender=ledger.admin)
    ledger.send(*submission, sender=ledger.relay)


def test_only_admins_change_roles_directly(ledger: Ledger, stranger: LocalAccount) -> None:
    for name in ("grantRole", "revokeRole"):
        for sender in (ledger.deployer, ledger.coordinator):
            refused = ledger.refused(name, HOSPITAL_ROLE, stranger.address, sender=sender)
            assert refused == refusal("AccessControlUnauthorizedAccount", sender, ADMIN_ROLE)
    refused = ledger.refused("renounceRole", ADMIN_ROLE, ledger.admin, sender=ledger.relay)
    assert refused == refusal("AccessControlBadConfirmation")
    refused = ledger.refused("grantRole", HOSPITAL_ROLE, ZERO_ADDRESS, sender=ledger.admin)
    assert refused == refusal("EmptyValue")


@pytest.mark.parametrize("role", ROLES)
def test_a_signed_change_needs_no_ether_of_the_admin(
    ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount, role: bytes
) -> None:
    subject = stranger.address
    for nonce, granted in enumerate((True, False)):
        signed = change(ledger, signing_admin, role, subject, granted=granted)
        receipt = ledger.send("changeRole", *signed, sender=ledger.relay)
        name = "RoleGranted" if granted else "RoleRevoked"
        assert ledger.events(receipt)[0] == role_event(name, role, subject, ledger.relay)
        assert ledger.view("hasRole", role, subject) is granted
        assert ledger.view("nonces", signing_admin.address) == nonce + 1


def test_a_signed_change_works_once_and_in_order(
    ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount
) -> None:
    admin = signing_admin.address
    ahead = change(ledger, signing_admin, AUDITOR_ROLE, stranger.address, nonce=1)
    assert ledger.refused("changeRole", *ahead) == refusal("InvalidAccountNonce", admin, 0)
    signed = change(ledger, signing_admin, AUDITOR_ROLE, stranger.address)
    ledger.send("changeRole", *signed, sender=ledger.relay)
    assert ledger.refused("changeRole", *signed) == refusal("InvalidAccountNonce", admin, 1)


def test_a_signed_change_expires(ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount) -> None:
    now = ledger.chain.now
    expired = change(ledger, signing_admin, AUDITOR_ROLE, stranger.address, deadline=now - 1)
    assert ledger.refused("changeRole", *expired) == refusal("DeadlinePassed", now - 1, now)
    last = change(ledger, signing_admin, AUDITOR_ROLE, stranger.address, deadline=now + 1)
    ledger.send("changeRole", *last, sender=ledger.relay)
    assert ledger.chain.now == now + 1


def test_a_signed_change_names_a_known_role(
    ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount
) -> None:
    signed = change(ledger, signing_admin, digest("role"), stranger.address)
    assert ledger.refused("changeRole", *signed) == refusal("UnknownRole", digest("role"))
    signed = change(ledger, signing_admin, HOSPITAL_ROLE, ZERO_ADDRESS)
    assert ledger.refused("changeRole", *signed) == refusal("EmptyValue")


def test_a_change_signed_by_anyone_else_is_refused(
    ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount
) -> None:
    own = change(ledger, stranger, ADMIN_ROLE, stranger.address)
    expected = refusal("AccessControlUnauthorizedAccount", stranger.address, ADMIN_ROLE)
    assert ledger.refused("changeRole", *own) == expected
    forged = change(ledger, stranger, ADMIN_ROLE, stranger.address, admin=signing_admin.address)
    assert ledger.refused("changeRole", *forged) == refusal("InvalidSignature", signing_admin.address)

    ledger.send("revokeRole", ADMIN_ROLE, signing_admin.address, sender=ledger.admin)
    former = change(ledger, signing_admin, AUDITOR_ROLE, stranger.address)
    expected = refusal("AccessControlUnauthorizedAccount", signing_admin.address, ADMIN_ROLE)
    assert ledger.refused("changeRole", *former) == expected


@pytest.mark.parametrize(
    ("position", "value"), [(0, ADMIN_ROLE), (1, account(1).address), (2, False), (3, 1), (4, 2**255)]
)
def test_a_change_altered_after_signing_is_refused(
    ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount, position: int, value: Any
) -> None:
    fields, admin, signature = change(ledger, signing_admin, AUDITOR_ROLE, stranger.address)
    altered = (*fields[:position], value, *fields[position + 1 :])
    assert ledger.refused("changeRole", altered, admin, signature) == refusal("InvalidSignature", admin)


@pytest.mark.parametrize("domain", [{"chainId": 1}, {"verifyingContract": "0x" + "11" * 20}])
def test_a_change_signed_for_another_ledger_is_refused(
    ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount, domain: dict[str, Any]
) -> None:
    signed = change(ledger, signing_admin, AUDITOR_ROLE, stranger.address, domain=domain)
    assert ledger.refused("changeRole", *signed) == refusal("InvalidSignature", signing_admin.address)


def test_a_wallet_contract_may_be_the_admin(ledger: Ledger, hospitals: Hospitals, stranger: LocalAccount) -> None:
    wallet = ledger.chain.deploy("TestWallet", stranger.address).address
    ledger.send("grantRole", ADMIN_ROLE, wallet, sender=ledger.admin)
    forged = change(ledger, hospitals[0], CLINICIAN_ROLE, hospitals[0].address, admin=wallet)
    assert ledger.refused("changeRole", *forged) == refusal("InvalidSignature", wallet)
    signed = change(ledger, stranger, CLINICIAN_ROLE, hospitals[0].address, admin=wallet)
    ledger.send("changeRole", *signed, sender=ledger.relay)
    assert ledger.view("hasRole", CLINICIAN_ROLE, hospitals[0].address)
    assert ledger.view("nonces", wallet) == 1


def test_only_admins_pause(ledger: Ledger) -> None:
    for name in ("pause", "unpause"):
        refused = ledger.refused(name, sender=ledger.coordinator)
        assert refused == refusal("AccessControlUnauthorizedAccount", ledger.coordinator, ADMIN_ROLE)
    assert ledger.refused("unpause", sender=ledger.admin) == refusal("ExpectedPause")
    receipt = ledger.send("pause", sender=ledger.admin)
    assert ledger.events(receipt) == [("Paused", {"account": ledger.admin})]
    assert ledger.view("paused")
    assert ledger.refused("pause", sender=ledger.admin) == refusal("EnforcedPause")
    receipt = ledger.send("unpause", sender=ledger.admin)
    assert ledger.events(receipt) == [("Unpaused", {"account": ledger.admin})]


def test_roles_change_while_paused(ledger: Ledger, signing_admin: LocalAccount, stranger: LocalAccount) -> None:
    ledger.send("pause", sender=ledger.admin)
    signed = change(ledger, signing_admin, HOSPITAL_ROLE, stranger.address)
    ledger.send("changeRole", *signed, sender=ledger.relay)
    ledger.send("revokeRole", HOSPITAL_ROLE, stranger.address, sender=ledger.admin)

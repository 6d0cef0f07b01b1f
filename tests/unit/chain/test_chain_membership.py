"""Role events read as who holds what and who decided so, and the calldata that tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from concilia_chain import contract_file, membership
from concilia_chain.events import Event, EventReader, SignedChange
from concilia_chain.settings import ChainSettings
from concilia_kit import signing
from concilia_kit.roles import Role
from concilia_kit.signing import Domain, RoleChange
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

READER = EventReader(contract_file.read(Path(str(ChainSettings.model_fields["contract_file"].default))).abi)
CHANGE = "(bytes32,address,bool,uint256,uint256)"
SELECTOR = keccak(text=f"changeRole({CHANGE},address,bytes)")[:4]
ADMIN: LocalAccount = Account.from_key(b"\x21" * 32)
OTHER: LocalAccount = Account.from_key(b"\x22" * 32)
HOLDER = "0x52908400098527886E0F7030069857D2E4169EE7"
DOMAIN = Domain(chain_id=1337, contract="0x8617E340B3D01FA5F11F306F4090FD50E238070D")


def calldata(role: bytes, granted: bool, admin: str, signature: bytes = b"\xaa" * 65) -> bytes:
    values = [(role, HOLDER, granted, 3, 2**40), admin, signature]
    return SELECTOR + encode([CHANGE, "address", "bytes"], values)


def change(role: Role, granted: bool, admin: str, signature: str = "0x00") -> SignedChange:
    return SignedChange(role.identifier.hex(), HOLDER, granted, 3, 2**40, admin, signature)


def event(name: str, role: Role | bytes, **others: Any) -> Event:
    identifier = role.identifier if isinstance(role, Role) else role
    arguments: dict[str, str | int] = {"role": identifier.hex(), "account": HOLDER, "sender": OTHER.address}
    return Event(name, arguments, 7, "0x07", 1, "0xt", **others)


def test_role_changes_in_calldata() -> None:
    grant = calldata(Role.AUDITOR.identifier, True, ADMIN.address)
    expected = change(Role.AUDITOR, True, ADMIN.address, "0x" + "aa" * 65)
    assert READER.role_changes(grant) == [expected]
    assert READER.is_role_change(grant)
    revocation = calldata(Role.AUDITOR.identifier, False, OTHER.address, b"\xbb")
    wrapped = keccak(text="multicall(bytes[])")[:4] + encode(["bytes[]"], [[grant, revocation]])
    assert READER.role_changes(wrapped) == [expected, change(Role.AUDITOR, False, OTHER.address, "0xbb")]
    assert not READER.is_role_change(wrapped)


@given(st.binary(max_size=300), st.booleans())
def test_any_calldata_is_read_or_not(data: bytes, with_selector: bool) -> None:
    assert isinstance(READER.role_changes(SELECTOR + data if with_selector else data), list)


def test_each_event_has_the_change_that_made_it() -> None:
    events = [event(name, Role.AUDITOR) for name in ("RoleGranted", "RoleRevoked", "RoleGranted")]
    events.append(event("RoleGranted", Role.HOSPITAL))
    changes = [
        change(Role.AUDITOR, True, ADMIN.address),
        change(Role.CLINICIAN, True, OTHER.address),  # had no effect, and made no event
        change(Role.AUDITOR, False, ADMIN.address),
        change(Role.AUDITOR, True, OTHER.address),
    ]
    told = membership.signed(events, changes)
    assert [each.signer for each in told] == [ADMIN.address, ADMIN.address, OTHER.address, None]
    assert [each.name for each in told] == [each.name for each in events]


def test_other_events_have_no_signer() -> None:
    paused = Event("Paused", {"account": HOLDER}, 7, "0x07", 1, "0xt")
    update = Event("UpdateRecorded", {"job": "a" * 64, "round": 1, "hospital": HOLDER}, 7, "0x07", 1, "0xt", "0xaa")
    assert membership.signed([paused, update], [change(Role.AUDITOR, True, ADMIN.address)]) == [paused, update]


def test_genuine_is_what_the_named_administrator_signed() -> None:
    statement = RoleChange(role=Role.AUDITOR, account=HOLDER, granted=True, nonce=3, deadline=2**40)
    signature = signing.sign(statement, DOMAIN, ADMIN)
    genuine = change(Role.AUDITOR, True, ADMIN.address, signature)
    assert membership.genuine(genuine, DOMAIN)
    assert not membership.genuine(genuine._replace(admin=OTHER.address), DOMAIN)
    assert not membership.genuine(genuine._replace(granted=False), DOMAIN)
    assert not membership.genuine(genuine._replace(nonce=4), DOMAIN)
    assert not membership.genuine(genuine._replace(role="07" * 32), DOMAIN)
    assert not membership.genuine(genuine._replace(signature="0x"), DOMAIN)
    assert not membership.genuine(genuine._replace(signature="0x" + "ff" * 65), DOMAIN)
    assert not membership.genuine(genuine, Domain(chain_id=1, contract=DOMAIN.contract))


@given(st.lists(st.tuples(st.sampled_from(list(Role)), st.booleans())))
def test_the_last_event_of_a_role_decides(steps: list[tuple[Role, bool]]) -> None:
    held: set[Role] = set()
    for role, granted in steps:
        (held.add if granted else held.discard)(role)
    events = [event("RoleGranted" if granted else "RoleRevoked", role) for role, granted in steps]
    assert membership.held(events, final=7) == tuple(role for role in Role if role in held)


@given(st.lists(st.booleans()), st.integers(0, 12))
def test_grants_count_when_they_are_final_and_revocations_at_once(steps: list[bool], final: int) -> None:
    events = [
        replace(event("RoleGranted" if granted else "RoleRevoked", Role.AUDITOR), block=block)
        for block, granted in enumerate(steps)
    ]
    granted_at = [block for block, granted in enumerate(steps) if granted and block <= final]
    revoked_at = [block for block, granted in enumerate(steps) if not granted]
    holds = bool(granted_at) and granted_at[-1] > max(revoked_at, default=-1)
    assert membership.held(events, final=final) == ((Role.AUDITOR,) if holds else ())


def test_a_record_names_who_decided() -> None:
    signed = membership.record(event("RoleGranted", Role.ADMIN, timestamp=1_700_000_000, signer=ADMIN.address))
    assert signed is not None
    assert (signed.role, signed.granted, signed.admin) == (Role.ADMIN, True, ADMIN.address)
    assert signed.at is not None
    assert signed.at.isoformat() == "2023-11-14T22:13:20+00:00"
    sent = membership.record(event("RoleRevoked", Role.CLINICIAN))
    assert sent is not None
    assert (sent.granted, sent.admin, sent.at) == (False, OTHER.address, None)
    assert membership.record(event("RoleGranted", b"\x07" * 32)) is None


@pytest.mark.parametrize("role", list(Role))
def test_identifiers(role: Role) -> None:
    assert membership.ROLES[role.identifier.hex()] is role

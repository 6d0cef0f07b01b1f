"""What the ledger's membership events say: who holds which role, and who decided so. Pure.

Source: OpenZeppelin AccessControl, which emits `RoleGranted` and `RoleRevoked` only where a role changes hands; so the
last of them for a role and an account is the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from concilia_kit import signing
from concilia_kit.roles import Role
from concilia_kit.signing import Domain, RoleChange
from concilia_kit.wire.chain import RoleRecord

from concilia_chain.events import Event, SignedChange

GRANTED, REVOKED = "RoleGranted", "RoleRevoked"
ROLE_EVENTS = (GRANTED, REVOKED)
ROLES: Mapping[str, Role] = {role.identifier.hex(): role for role in Role}
"""Roles by identifier, 64 hexadecimal characters."""


def held(events: Iterable[Event], final: int) -> tuple[Role, ...]:
    """The roles that one account's role events, in chain order, leave it with.

    A grant counts in blocks up to `final`: one that a reorganisation may take back gives no right. A revocation counts
    at once: one that may be taken back is better obeyed.
    """
    counted = {event.arguments["role"]: event.name for event in events if event.name == REVOKED or event.block <= final}
    return tuple(role for identifier, role in ROLES.items() if counted.get(identifier) == GRANTED)


def signed(events: Iterable[Event], changes: Iterable[SignedChange]) -> list[Event]:
    """One transaction's events, those of roles with the signer of the change that made them, where there is one.

    Both in order: each change accounts for one event at most, for it changes one role once.
    """
    left = list(changes)
    named = []
    for event in events:
        change = next((each for each in left if _made(each, event)), None)
        if change is not None:
            left.remove(change)
            event = replace(event, signer=change.admin)
        named.append(event)
    return named


def genuine(change: SignedChange, domain: Domain) -> bool:
    """Whether a change was signed by the account that it names as administrator; false for contract wallets."""
    role = ROLES.get(change.role)
    if role is None:
        return False
    statement = RoleChange(
        role=role, account=change.account, granted=change.granted, nonce=change.nonce, deadline=change.deadline
    )
    try:
        return signing.signer(statement, domain, change.signature) == change.admin
    except ValueError:
        return False


def record(event: Event) -> RoleRecord | None:
    """A role event as a record of who decided what; None for a role that the consortium does not know."""
    role = ROLES.get(str(event.arguments["role"]))
    if role is None:
        return None
    return RoleRecord(
        role=role,
        account=str(event.arguments["account"]),
        granted=event.name == GRANTED,
        admin=event.signer or str(event.arguments["sender"]),
        block=event.block,
        log_index=event.log_index,
        transaction=event.transaction,
        at=moment(event),
    )


def moment(event: Event) -> datetime | None:
    """The time of an event's block, where it was kept."""
    return None if event.timestamp is None else datetime.fromtimestamp(event.timestamp, UTC)


def _made(change: SignedChange, event: Event) -> bool:
    return (
        event.name == (GRANTED if change.granted else REVOKED)
        and event.arguments["role"] == change.role
        and event.arguments["account"] == change.account
    )

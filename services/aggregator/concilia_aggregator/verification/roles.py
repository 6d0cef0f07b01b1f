"""Who held the hospital role when: pure, from the ledger's role events in chain order.

Source: OpenZeppelin AccessControl, which emits `RoleGranted` and `RoleRevoked` only where a role changes hands; so the
last of them before a place in the chain is the state at that place.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from concilia_kit.roles import Role

ROLE_EVENTS = frozenset({"RoleGranted", "RoleRevoked"})

_HOSPITAL = Role.HOSPITAL.identifier.hex()


class RoleEvent(Protocol):
    """An event of the contract at its place in the chain."""

    @property
    def name(self) -> str:
        """As the contract names it."""

    @property
    def block(self) -> int:
        """Its block's number."""

    @property
    def log_index(self) -> int:
        """Its place within the block."""

    @property
    def arguments(self) -> Mapping[str, str | int]:
        """By name, bytes32 as 64 hexadecimal characters."""


class RoleChanged(NamedTuple):
    """The hospital role changed hands at a place of the chain; `account` with its EIP-55 checksum."""

    block: int
    log_index: int
    account: str
    granted: bool


class RoleHistory:
    """The hospital role over time. An account of which nothing is known holds none."""

    def __init__(self, changes: Iterable[RoleChanged]) -> None:
        self._of: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
        for change in sorted(changes):
            self._of[change.account].append((change.block, change.log_index, change.granted))

    def held(self, account: str, block: int, log_index: int) -> bool:
        """Whether an account held the role just before the log at that place."""
        changes = self._of.get(account, [])
        before = bisect.bisect_left(changes, (block, log_index, False))
        return before > 0 and changes[before - 1][2]


def history(events: Iterable[RoleEvent]) -> RoleHistory:
    """The hospital role over time, from any of the contract's events. Raises `KeyError` for a malformed role event."""
    return RoleHistory(
        RoleChanged(event.block, event.log_index, str(event.arguments["account"]), event.name == "RoleGranted")
        for event in events
        if event.name in ROLE_EVENTS and event.arguments["role"] == _HOSPITAL
    )

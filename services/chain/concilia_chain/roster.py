"""Who holds which role by the stored events, kept in memory: asked with every request, and read again when it changed.

Nothing here asks the node. Role events are few; what is kept is thrown away when another one is stored, when a grant
becomes final, and when the chain forgets one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from concilia_kit.roles import Role
from concilia_kit.wire import chain as wire

from concilia_chain import membership
from concilia_chain.events import Event
from concilia_chain.store import RoleMark, Store

_LOOK_SECONDS = 0.25
"""How old what is kept may be where another process of this service may have stored events."""


@dataclass(frozen=True, slots=True)
class Roll:
    """Roles by address as of `block`; `tag` is another one whenever a role is. `document` is the roll as it is told."""

    block: int
    tag: str
    roles: Mapping[str, tuple[Role, ...]]
    document: bytes

    def of(self, address: str) -> tuple[Role, ...]:
        """The roles of an address (EIP-55)."""
        return self.roles.get(address, ())

    def holders(self, role: Role) -> tuple[str, ...]:
        """Who holds a role, in ascending order of address."""
        return tuple(sorted((address for address, held in self.roles.items() if role in held), key=_number))

    def count(self, role: Role) -> int:
        """How many hold a role."""
        return sum(role in held for held in self.roles.values())


class Roster:
    """The roll of one ledger, for many threads. A grant counts once it is final, a revocation at once."""

    def __init__(self, store: Store, confirmations: int) -> None:
        self._store = store
        self._confirmations = confirmations
        self._lock = threading.Lock()
        self._kept: Roll | None = None
        self._mark: RoleMark | None = None
        self._version = -1
        self._looked_at = float("-inf")

    def now(self) -> Roll:
        """The roll by the events stored until now. Raises `sqlalchemy.exc.DBAPIError`."""
        return self.at_once() or self._look()

    def at_once(self) -> Roll | None:
        """The roll where it needs no look at the database, for those who must not wait for one."""
        kept, version = self._kept, self._store.version
        fresh = version == self._version and time.monotonic() - self._looked_at < _LOOK_SECONDS
        return kept if fresh else None

    def _look(self) -> Roll:
        with self._lock:
            if (kept := self.at_once()) is not None:
                return kept
            version, began = self._store.version, time.monotonic()
            block = self._store.cursor().block
            if self._kept is None or self._store.role_mark(block - self._confirmations) != self._mark:
                block, events = self._store.role_events()
                final = block - self._confirmations
                self._mark = RoleMark.of(events, final)
                held = _held(events, final)
                kept = Roll(block, self._mark.tag, held, wire.Roll(roles=held).model_dump_json().encode())
            else:
                kept = replace(self._kept, block=block)
            self._kept, self._version, self._looked_at = kept, version, began
            return kept


def _held(events: Iterable[Event], final: int) -> dict[str, tuple[Role, ...]]:
    """Roles by address, of those who hold any; events in chain order."""

    def account(event: Event) -> str:
        return str(event.account)

    found = {who: membership.held(theirs, final) for who, theirs in groupby(sorted(events, key=account), account)}
    return {who: roles for who, roles in found.items() if roles}


def _number(address: str) -> int:
    return int(address, 16)

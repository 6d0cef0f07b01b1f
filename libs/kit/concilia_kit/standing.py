"""Which roles an address holds at this moment, as the ledger's events have it, for services that were shown a token.

A token keeps the roles of its birth for minutes; a role that is taken must not. Each address is asked about once a
second at most, so that a busy caller costs one small read a second; or all of them together, where callers are many.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import httpx
from pydantic import ValidationError

from concilia_kit import logs
from concilia_kit.http import call
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.published import FRESH_SECONDS, PATIENCE, STALE_SECONDS, Published
from concilia_kit.roles import Role
from concilia_kit.wire.chain import AccountRoles, Roll

_CAPACITY = 10_000

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    """Roles, when (monotonic seconds) they were last told and last asked for, and since when (Unix seconds) they are
    known."""

    roles: frozenset[Role] = frozenset()
    told: float = float("-inf")
    asked: float = float("-inf")
    since: float = float("-inf")


class CurrentRoles:
    """Roles as the chain service tells them, remembered for `fresh_seconds`.

    Where the chain service does not answer, what it said last counts until `stale_seconds` after it was asked, so that
    its restart interrupts nobody's upload; after that nothing is known, and nobody is let in. `clock` tells monotonic
    seconds, `wall` Unix seconds. Thread-safe.
    """

    def __init__(
        self,
        chain: httpx.Client,
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._chain = chain
        self._fresh_seconds = fresh_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def __call__(self, address: str, as_of: float = float("-inf")) -> frozenset[Role]:
        """The roles of an EIP-55 address, known no earlier than `as_of` (Unix seconds) where they can be had: a token
        that was taken for a new role is not measured by what was known before it. Raises `Unavailable`."""
        now = self._clock()
        with self._lock:
            known = self._known.get(address, _Known())
        older = known.since < as_of and known.asked == known.told
        if older or now - known.asked > self._fresh_seconds:
            began = self._wall()
            known = self._remember(address, self._ask(address), now, began)
        if now - known.told > self._stale_seconds:
            raise _unavailable()
        return known.roles

    def _remember(self, address: str, told: frozenset[Role] | None, now: float, began: float) -> _Known:
        """What is known after an answer (None: there was none) to a question of `now`, `began` on the wall's clock."""
        with self._lock:
            known = self._known.get(address, _Known())
            if told is None:
                known = replace(known, asked=now)
            elif known.told <= now:  # else another thread asked later and was answered earlier
                known = _Known(told, told=now, asked=now, since=began)
            self._known[address] = known
            self._known.move_to_end(address)
            while len(self._known) > _CAPACITY:
                self._known.popitem(last=False)
        return known

    def _ask(self, address: str) -> frozenset[Role] | None:
        try:
            answer = call(self._chain, "GET", f"/v1/members/{address}/roles", retry_seconds=0, timeout=PATIENCE)
            told = AccountRoles.model_validate_json(answer.content)
        except (Problem, ValidationError) as error:
            _log.debug("roles not told", error=type(error).__name__)
            return None
        return frozenset(told.roles) if told.address == address else None


class CurrentRoll:
    """The same for services with many callers: the roles of everybody, asked for at once and remembered together (see
    `published`). Thread-safe."""

    def __init__(
        self,
        chain: httpx.Client,
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._roll: Published[Mapping[str, frozenset[Role]]] = Published(
            chain, "/v1/roles", _held, {}, _unavailable, fresh_seconds, stale_seconds, clock, wall
        )

    def __call__(self, address: str, as_of: float = float("-inf")) -> frozenset[Role]:
        """As `CurrentRoles` does. Raises `Unavailable`."""
        return self._roll.now(as_of).get(address, frozenset())

    def at_once(self, address: str, as_of: float = float("-inf")) -> frozenset[Role] | None:
        """The same where nobody need be asked; None elsewhere."""
        roll = self._roll.at_once(as_of)
        return None if roll is None else roll.get(address, frozenset())


def _held(document: bytes) -> Mapping[str, frozenset[Role]]:
    return {address: frozenset(held) for address, held in Roll.model_validate_json(document).roles.items()}


def _unavailable() -> Unavailable:
    return Unavailable("which roles are held cannot be had at the moment", code="roles_unavailable")

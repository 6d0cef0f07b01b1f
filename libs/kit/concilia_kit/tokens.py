"""Access tokens: what a service believes about its caller, verified offline with the auth service's published keys.

Source: JSON Web Token (RFC 7519), EdDSA (RFC 8037), JSON Web Key Set (RFC 7517).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jwt

from concilia_kit.problems import Unauthorized, Unavailable
from concilia_kit.roles import Role
from concilia_kit.wire.auth import Audience

ALGORITHM = "EdDSA"
ISSUER = "concilia-auth"


Standing = Callable[[str, float], frozenset[Role]]
"""The roles that an address holds, as of some moment after the one given (Unix seconds)."""

AtOnce = Callable[[str, float], frozenset[Role] | None]
"""The same for those who cannot wait: None where nobody knows without asking."""

Ended = Callable[[str], bool]
"""Whether a session, by its id, has ended."""

_REMEMBERED = 4096
"""Tokens whose signature is not looked at again; each takes a kilobyte."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller: EIP-55 address, the roles it held on the contract when its token was issued and has not lost since,
    when the token ends (Unix seconds), and the id of the session that it was taken with; empty where there is none."""

    address: str
    roles: frozenset[Role]
    expires_at: float = float("inf")
    session: str = ""


class TokenVerifier:
    """Verifies access tokens for one audience.

    `fetch_keys` returns a JSON Web Key Set. It is called for a key that is unknown, at most every `refetch_seconds`, so
    that a forged key id cannot make the service hammer auth; and once `max_age_seconds` have passed, so that a key that
    is no longer published is no longer trusted. `standing` says which roles an address holds at this moment: a role
    that was taken since a token was issued is not in its `Principal`; `at_once`, or `standing`'s method of that name,
    says it where it need not ask. `ended` says whether a token's session has ended, and its method `at_once` the same;
    a token that names no session is one that auth made for itself. A token that was verified is remembered for as long
    as the keys are: its signature does not change.
    """

    def __init__(
        self,
        audience: Audience,
        fetch_keys: Callable[[], dict[str, Any]],
        refetch_seconds: float = 5.0,
        max_age_seconds: float = 300.0,
        standing: Standing | None = None,
        at_once: AtOnce | None = None,
        ended: Ended | None = None,
    ) -> None:
        self._audience = audience
        self._standing = standing
        self._at_once: AtOnce | None = at_once or getattr(standing, "at_once", None)
        self._ended = ended
        self._ended_at_once: Callable[[str], bool | None] | None = getattr(ended, "at_once", None)
        self._fetch_keys = fetch_keys
        self._refetch_seconds = refetch_seconds
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._verified: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._asked = self._fetched = float("-inf")

    def verify(self, token: str) -> Principal:
        """The caller.

        Raises `Unauthorized` for a token that is malformed, expired, foreign, for another audience or of a session
        that has ended, and what `standing` and `ended` raise.
        """
        caller, issued_at = self._claimed(token)
        if caller.session and self._ended is not None and self._ended(caller.session):
            raise Unauthorized("the session that this token was taken with has ended", code="session_ended")
        if self._standing is None or not caller.roles:
            return caller
        # A token says whole seconds: what was known a second later is no older than the token.
        return replace(caller, roles=caller.roles & self._standing(caller.address, issued_at + 1))

    def verify_at_once(self, token: str) -> Principal | None:
        """The caller of a token that was verified before, where nobody need be asked; None elsewhere."""
        known = self._known(token)
        if known is None:
            return None
        caller, issued_at = known
        if not self._session_lives(caller.session):
            return None
        if self._standing is None or not caller.roles:
            return caller
        held = None if self._at_once is None else self._at_once(caller.address, issued_at + 1)
        return None if held is None else replace(caller, roles=caller.roles & held)

    def _session_lives(self, session: str) -> bool:
        """Whether it is known without asking that a session has not ended."""
        if not session or self._ended is None:
            return True
        return self._ended_at_once is not None and self._ended_at_once(session) is False

    def _known(self, token: str) -> tuple[Principal, float] | None:
        """A token that was verified with the keys of now, and has not expired."""
        known = self._verified.get(token)
        return None if known is None or self._stale() or known[0].expires_at <= time.time() else known

    def _claimed(self, token: str) -> tuple[Principal, float]:
        """The caller by the token alone, and when it was issued (Unix seconds, rounded down)."""
        if (known := self._known(token)) is not None:
            return known
        found = self._decoded(token)
        with self._lock:
            if found[2] == self._fetched:  # else other keys came meanwhile
                self._verified[token] = found[:2]
            while len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)
        return found[:2]

    def _decoded(self, token: str) -> tuple[Principal, float, float]:
        """What a token's signed bytes say, and when (monotonic seconds) the keys came that they were verified with."""
        try:
            fetched, key = self._key(str(jwt.get_unverified_header(token).get("kid")))
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audience.value,
                issuer=ISSUER,
                options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )
            roles = frozenset(Role(role) for role in claims["roles"])
            caller = Principal(claims["sub"], roles, float(claims["exp"]), str(claims.get("sid", "")))
            return caller, float(claims["iat"]), fetched
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("the access token has expired", code="token_expired") from error
        except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
            raise Unauthorized("the access token is not valid here", code="token_invalid") from error

    def _key(self, key_id: str) -> tuple[float, jwt.PyJWK]:
        """A published key, and when the keys came that it is one of."""
        # Callers with a known, fresh key take no lock and never wait for a slow auth service.
        if key_id not in self._keys or self._stale():
            with self._lock:
                if (key_id not in self._keys or self._stale()) and self._may_ask():
                    fetched = self._fetch_keys()["keys"]
                    self._keys = {str(entry.get("kid")): jwt.PyJWK.from_dict(entry) for entry in fetched}
                    self._verified.clear()
                    self._fetched = time.monotonic()
            if self._stale():
                raise Unavailable("the published keys cannot be had at the moment", code="keys_unavailable")
        with self._lock:
            return self._fetched, self._keys[key_id]

    def _stale(self) -> bool:
        return time.monotonic() - self._fetched > self._max_age_seconds

    def _may_ask(self) -> bool:
        now = time.monotonic()
        if now - self._asked <= self._refetch_seconds:
            return False
        self._asked = now
        return True

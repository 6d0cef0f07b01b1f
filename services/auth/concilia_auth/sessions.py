"""Which sessions an address has, and ending them: one's own one by one, all others, and an administrator anybody's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from concilia_kit import logs
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from concilia_kit.wire.auth import EndedSessions, OpenSession

from concilia_auth.errors import SessionNotFound, SessionNotYours, SignInAgain
from concilia_auth.settings import AuthSettings
from concilia_auth.store import Store

RECENT = timedelta(minutes=15)
"""How long after signing in somebody may end their other sessions. Source: OWASP ASVS 5.0, 7.5.2."""

_log = logs.get(__name__)


class Sessions:
    """Constructed once, used by many threads. Every method raises `StoreUnavailable`."""

    def __init__(self, settings: AuthSettings, store: Store, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock

    def of(self, caller: Principal) -> list[OpenSession]:
        """The caller's own sessions, newest first; the hundred newest where there are more."""
        return [
            OpenSession(
                id=each.id,
                opened_at=each.opened_at,
                last_used_at=each.used_at,
                expires_at=each.record.expires_at,
                device=each.record.device,
                is_current=each.id == caller.session,
            )
            for each in self._store.sessions(caller.address, self._clock(), self._settings.idle_seconds)
        ]

    def end(self, caller: Principal, address: str, session: str) -> None:
        """End one of the caller's own sessions; which may be the one that asks.

        Raises `SessionNotYours` for another address, `SessionNotFound` for what is none of this one's, and
        `SignInAgain`.
        """
        if caller.address != address:
            raise SessionNotYours("a session is ended by its own address")
        if session != caller.session:
            self._check_recent(caller)
        if self._store.opened_at(address, session) is None or not self._ended(address, [session]):
            raise SessionNotFound("this address has no such session")
        _log.info("session ended", address=address, by=caller.address)

    def end_all(self, caller: Principal, address: str) -> None:
        """End an address's sessions but the one that asks: one's own, or as an administrator anybody's.

        Raises `SessionNotYours`, and for one's own `SignInAgain`.
        """
        if caller.address == address:
            self._check_recent(caller)
        elif Role.ADMIN not in caller.roles:
            raise SessionNotYours("only an administrator ends somebody else's sessions")
        ended = self._ended(address, [each for each in self._store.session_ids(address) if each != caller.session])
        _log.info("sessions ended", address=address, by=caller.address, sessions=ended)

    def has_ended(self, session: str) -> bool:
        """Whether a session has ended, however it did; asked for each token that is shown to this service."""
        return not self._store.is_live(session)

    def ended(self) -> EndedSessions:
        """The sessions whose tokens are not to be taken any more, for the other services."""
        return EndedSessions(sessions=tuple(self._store.ended_sessions(self._clock())))

    def _check_recent(self, caller: Principal) -> None:
        opened = self._store.opened_at(caller.address, caller.session)
        if opened is None or self._clock() - opened > RECENT:
            raise SignInAgain("sign in again to end your other sessions")

    def _ended(self, address: str, sessions: list[str]) -> int:
        ended = self._store.end_sessions(address, sessions, self._clock(), self._settings.token_seconds)
        # A challenge that was signed and not yet sent would be a way back in.
        self._store.drop_nonces(address, self._settings.nonce_seconds)
        return ended

"""Signing in, what a session is good for, and applying for a role."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from concilia_kit import logs
from concilia_kit.metrics import outcome_of
from concilia_kit.problems import Problem
from concilia_kit.refusals import Refusals
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from concilia_kit.wire.auth import (
    AccessToken,
    Application,
    Audience,
    BrowserSession,
    Challenge,
    FiledApplication,
    Session,
    SessionView,
)

from concilia_auth import browser, csp, devices, eip4361, tokens
from concilia_auth.chain import Roles, Wallets
from concilia_auth.errors import (
    ApplicationNotYours,
    ApplicationsFull,
    ApplicationUnknown,
    NonceUnknown,
    SessionUnknown,
    SignatureInvalid,
)
from concilia_auth.keys import KeyRing
from concilia_auth.limits import UNKNOWN, Kind, Limits
from concilia_auth.metrics import AuthMetrics
from concilia_auth.settings import AuthSettings
from concilia_auth.store import SessionRecord, Store, session_id

_ASKING = 8  # addresses asked about side by side
_LOGGED = 5  # violations named in a line

_log = logs.get(__name__)


class AuthService:
    """Constructed once, used by many threads. `chain_id` and `clock` (aware, UTC) are asked at every use.

    `source` is where a request comes from, as `limits.source_of` tells.
    """

    def __init__(
        self,
        settings: AuthSettings,
        store: Store,
        keys: KeyRing,
        roles: Roles,
        chain_id: Callable[[], int],
        clock: Callable[[], datetime],
        *,
        wallets: Wallets,
        limits: Limits,
        metrics: AuthMetrics | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self._settings = settings
        self._site = eip4361.Site(settings.domain, settings.uri, settings.statement)
        self._store = store
        self._keys = keys
        self._roles = roles
        self._chain_id = chain_id
        self._clock = clock
        self._wallets = wallets
        self._limits = limits
        self._metrics = metrics or AuthMetrics()
        self._refusals = refusals or Refusals()
        self.session_seconds = settings.session_seconds
        self.origin = browser.origin_of(settings.uri)

    def challenge(self, address: str, source: str = UNKNOWN) -> Challenge:
        """A message for `address` (EIP-55) to sign. Raises `RateLimited`, `StoreUnavailable`, `ChainUnavailable`."""
        self._limits.of_source(Kind.CHALLENGE, source)
        self._limits.of_claimed_address(Kind.CHALLENGE, address, source)
        now = self._clock()
        expires_at = now + timedelta(seconds=self._settings.nonce_seconds)
        nonce = eip4361.new_nonce()
        message = eip4361.build(
            self._site,
            address=address,
            chain_id=self._chain_id(),
            nonce=nonce,
            issued_at=now,
            expires_at=expires_at,
        )
        self._store.put_nonce(nonce, address, self._settings.nonce_seconds)
        return Challenge(message=message, nonce=nonce, expires_at=expires_at)

    def sign_in(self, text: str, signature: str, source: str = UNKNOWN, device: str = devices.UNKNOWN) -> Session:
        """A session for whoever signed a challenge, from a `device` as `devices.described` has it.

        An attempt spends the nonce that it names, whatever comes of it, and before the text is parsed: a failed
        attempt leaves nothing to try again with, and parsing (which is costly) takes a nonce of ours. Raises
        `RateLimited`, `MessageMalformed`, `NonceUnknown`, what `eip4361.verify` raises, `StoreUnavailable` and
        `ChainUnavailable`.
        """
        try:
            session = self._sign_in(text, signature, source, device)
        except Exception as error:
            reason = outcome_of(error)
            self._metrics.sign_ins.labels(reason).inc()
            self._refusals.write("sign-in failed", source, reason=reason, address=eip4361.claimed_address(text))
            if isinstance(error, Problem):
                error.is_logged = True
            raise
        self._metrics.sign_ins.labels("ok").inc()
        return session

    def browser_sign_in(
        self, text: str, signature: str, former: str | None, source: str = UNKNOWN, device: str = devices.UNKNOWN
    ) -> Session:
        """A session as of `sign_in`, in place of the one that this browser had, if it had one.

        Raises what `sign_in` raises; the former session then lives on.
        """
        session = self.sign_in(text, signature, source, device)
        if former is not None:
            record = self._store.session(former, self._clock(), self._settings.idle_seconds)
            if record is not None:
                self._end(former, record)
        return session

    def browser_session(self, token: str) -> BrowserSession:
        """A browser's session, with the roles of this moment. Raises `SessionUnknown` and `…Unavailable`."""
        return BrowserSession(**dict(self.session(token)), csrf_token=browser.csrf_token(token))

    def session(self, token: str) -> SessionView:
        """Whose session it is, with the roles of this moment. Raises `SessionUnknown` and `…Unavailable`."""
        record = self._live(token)
        return SessionView(
            address=record.address, roles=_ordered(self._roles.of(record.address)), expires_at=record.expires_at
        )

    def sign_out(self, token: str) -> None:
        """End a session, every token that was taken with it, and every challenge that its address has open: one that
        was signed and not yet sent would be a way back in. Raises `SessionUnknown` and `StoreUnavailable`."""
        record = self._live(token)
        self._end(token, record)
        self._store.drop_nonces(record.address, self._settings.nonce_seconds)

    def access_token(self, token: str, audience: Audience, source: str = UNKNOWN) -> AccessToken:
        """A token for one audience, with the roles of this moment, that does not outlive its session.

        Raises `RateLimited`, `SessionUnknown`, `StoreUnavailable` and `ChainUnavailable`.
        """
        self._limits.of_source(Kind.TOKEN, source)
        record = self._live(token)
        self._limits.of_address(Kind.TOKEN, record.address)
        roles = self._roles.of(record.address)
        session = session_id(token)
        # One without roles opens nothing but this service, which looks at its session itself.
        if roles and not self._store.note_token(session, self._settings.token_seconds):
            raise _session_unknown()
        now = self._clock().replace(microsecond=0)
        expires_at = min(now + timedelta(seconds=self._settings.token_seconds), record.expires_at)
        signed = tokens.mint(
            self._keys.current().signing,
            token_id=secrets.token_urlsafe(16),
            address=record.address,
            roles=roles,
            audience=audience,
            issued_at=now,
            expires_at=expires_at,
            session=session,
        )
        self._metrics.tokens.labels(audience.value).inc()
        return AccessToken(token=signed, audience=audience, roles=_ordered(roles), expires_at=expires_at)

    def published_keys(self) -> dict[str, Any]:
        """The JSON Web Key Set that access tokens verify with."""
        return self._keys.current().published

    def csp_report(self, body: bytes) -> None:
        """Count and log what a browser reports of the content security policy; never raises for what it is sent."""
        try:
            violations = csp.parse(body) if len(body) <= csp.MAX_BODY else ()
        except ValueError:
            violations = ()
        if not violations:
            self._metrics.csp_reports.labels("malformed").inc()
            return
        self._metrics.csp_reports.labels("reported").inc(len(violations))
        named = dict.fromkeys(f"{violation.directive} {violation.blocked}" for violation in violations)
        _log.warning("content security policy violated", violations=list(named)[:_LOGGED], reports=len(violations))

    def _sign_in(self, text: str, signature: str, source: str, device: str) -> Session:
        self._limits.of_source(Kind.SIGN_IN, source)
        nonce = eip4361.nonce_of(text)
        given_to = self._store.take_nonce(nonce)
        if given_to is None:
            raise NonceUnknown("this nonce is not known, was used before or is too old; ask for a new challenge")
        self._limits.of_claimed_address(Kind.SIGN_IN, given_to, source)
        message = eip4361.parse(text)
        if message.address != given_to:
            raise NonceUnknown("this nonce was given to another address; ask for a challenge of your own")
        now = self._clock()
        try:
            eip4361.verify(message, signature, self._site, chain_id=self._chain_id(), nonce=nonce, now=now)
        except SignatureInvalid:
            # Its own key did not sign; all else is right.
            if not self._wallets.accept(given_to, eip4361.digest(text), signature):
                raise
        return self._open(given_to, now, device)

    def _open(self, address: str, now: datetime, device: str) -> Session:
        roles = self._roles.of(address)
        token = secrets.token_urlsafe(32)
        # Whole seconds: what a client reads is what is stored.
        expires_at = now.replace(microsecond=0) + timedelta(seconds=self._settings.session_seconds)
        record = SessionRecord(address=address, expires_at=expires_at, device=device)
        self._store.put_session(token, record, self._settings.idle_seconds, now)
        _log.info("signed in", address=address, roles=_ordered(roles))
        return Session(token=token, address=address, roles=_ordered(roles), expires_at=expires_at)

    def _live(self, token: str) -> SessionRecord:
        record = self._store.session(token, self._clock(), self._settings.idle_seconds)
        if record is None:
            raise _session_unknown()
        return record

    def _end(self, token: str, record: SessionRecord) -> None:
        life = self._settings.token_seconds
        self._store.end_sessions(record.address, [session_id(token)], self._clock(), life)


class Applications:
    """Who asks for which role. `roles` tells which roles an address holds now, and may tell it a second late."""

    def __init__(
        self,
        store: Store,
        roles: Callable[[str], frozenset[Role]],
        clock: Callable[[], datetime],
        *,
        limits: Limits,
    ) -> None:
        self._store = store
        self._roles = roles
        self._clock = clock
        self._limits = limits

    def file(self, caller: Principal, asked: Application, source: str = UNKNOWN) -> FiledApplication:
        """Keep an application, in place of the caller's last one.

        Raises `RateLimited`, `ApplicationsFull`, `StoreUnavailable`.
        """
        self._limits.of_source(Kind.APPLICATION, source)
        self._limits.of_address(Kind.APPLICATION, caller.address)
        filed = FiledApplication(**dict(asked), address=caller.address, filed_at=self._clock())
        if not self._store.put_application(filed):
            raise ApplicationsFull("too many applications wait for an administrator; try again later")
        _log.info("application filed", address=filed.address, role=filed.role)
        return filed

    def pending(self) -> list[FiledApplication]:
        """The applications that wait, newest first; those whose address holds the role by now are forgotten.

        Raises `StoreUnavailable`, and what `roles` raises.
        """
        filed = self._store.applications(self._clock())
        with ThreadPoolExecutor(_ASKING) as pool:
            held = list(pool.map(self._roles, (application.address for application in filed)))
        waiting = []
        for application, roles in zip(filed, held, strict=True):
            if application.role in roles:
                self._store.settle_application(application)
            else:
                waiting.append(application)
        return waiting

    def remove(self, caller: Principal, address: str) -> None:
        """Forget an application: one's own, or as an administrator anybody's.

        Raises `ApplicationNotYours`, `ApplicationUnknown` and `StoreUnavailable`.
        """
        if caller.address != address and Role.ADMIN not in caller.roles:
            raise ApplicationNotYours("only an administrator removes somebody else's application")
        if not self._store.drop_application(address, self._clock()):
            raise ApplicationUnknown("this address has no application")


def _session_unknown() -> SessionUnknown:
    return SessionUnknown("no session goes by this token; sign in again", headers={"WWW-Authenticate": "Bearer"})


def _ordered(roles: frozenset[Role]) -> tuple[Role, ...]:
    return tuple(sorted(roles))
